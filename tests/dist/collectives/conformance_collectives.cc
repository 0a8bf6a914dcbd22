// Collectives: contents, bitwise repeatable sums, overlap.
#include <chrono>
#include <cmath>
#include <cstring>
#include <numeric>
#include <thread>

#include "tests/dist/collectives/conformance.h"

namespace tessera::testing {
namespace {

std::vector<int64_t> Begins(const std::vector<int64_t>& counts) {
  std::vector<int64_t> begins(counts.size());
  std::exclusive_scan(counts.begin(), counts.end(), begins.begin(), int64_t{0});
  return begins;
}

// Summands whose sum depends on the order of addition.
std::vector<float> Summands(int64_t count, int rank) {
  std::vector<float> values(count);
  for (int64_t i = 0; i < count; ++i) {
    values[i] =
        std::sin(static_cast<float>(i * 7 + rank * 131 + 1)) * std::pow(10.0f, static_cast<float>((i + rank) % 7));
  }
  return values;
}

std::vector<float> SumInRankOrder(int64_t count, int ranks) {
  std::vector<float> sum = Summands(count, 0);
  for (int r = 1; r < ranks; ++r) {
    const std::vector<float> other = Summands(count, r);
    for (int64_t i = 0; i < count; ++i) sum[i] += other[i];
  }
  return sum;
}

bool BitwiseEqual(std::span<const float> a, std::span<const float> b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size_bytes()) == 0);
}

TEST_P(Conformance, AllGatherUnevenAndZeroCounts) {
  Run([](Communicator& comm) -> Status {
    for (const int64_t unit : {0, 1, 700, 5000}) {
      std::vector<int64_t> counts;
      for (int r = 0; r < comm.size(); ++r) counts.push_back(r % 3 == 1 ? 0 : unit * (r + 1));
      const std::vector<int64_t> displacements = Begins(counts);
      std::vector<std::byte> received(displacements.back() + counts.back()), expected;
      const std::vector<std::byte> sent = Pattern(counts[comm.rank()], comm.rank());
      TESSERA_RETURN_IF_ERROR(
          Finish(comm, comm.AllGatherV(sent, received.data(), counts, displacements), "all-gather"));
      for (int r = 0; r < comm.size(); ++r) {
        const std::vector<std::byte> block = Pattern(counts[r], r);
        expected.insert(expected.end(), block.begin(), block.end());
      }
      EXPECT_EQ(received, expected);
      // In place: the own block is where it belongs already.
      std::vector<std::byte> in_place(received.size());
      std::copy(sent.begin(), sent.end(), in_place.begin() + displacements[comm.rank()]);
      const ConstBytes own(in_place.data() + displacements[comm.rank()], sent.size());
      TESSERA_RETURN_IF_ERROR(
          Finish(comm, comm.AllGatherV(own, in_place.data(), counts, displacements), "all-gather in place"));
      EXPECT_EQ(in_place, expected);
    }
    return absl::OkStatus();
  });
}

TEST_P(Conformance, AllToAllUnevenAndZeroCounts) {
  Run([](Communicator& comm) -> Status {
    const auto count = [](int from, int to) { return int64_t{(from * 5 + to * 3) % 4} * 617; };
    std::vector<int64_t> send_counts, receive_counts;
    std::vector<std::byte> sent, expected;
    for (int r = 0; r < comm.size(); ++r) {
      send_counts.push_back(count(comm.rank(), r));
      receive_counts.push_back(count(r, comm.rank()));
      const auto out = Pattern(send_counts[r], comm.rank(), r);
      const auto in = Pattern(receive_counts[r], r, comm.rank());
      sent.insert(sent.end(), out.begin(), out.end());
      expected.insert(expected.end(), in.begin(), in.end());
    }
    std::vector<std::byte> received(expected.size());
    TESSERA_RETURN_IF_ERROR(Finish(comm,
                                   comm.AllToAllV(sent.data(), send_counts, Begins(send_counts), received.data(),
                                                  receive_counts, Begins(receive_counts)),
                                   "all-to-all"));
    EXPECT_EQ(received, expected);
    return absl::OkStatus();
  });
}

TEST_P(Conformance, ReduceScatterSumsInRankOrder) {
  Run([](Communicator& comm) -> Status {
    for (const int64_t unit : {0, 1, 400, 3000}) {
      std::vector<int64_t> counts;
      for (int r = 0; r < comm.size(); ++r) counts.push_back(r % 4 == 2 ? 0 : unit * (r + 1));
      const std::vector<int64_t> begins = Begins(counts);
      const int64_t total = begins.back() + counts.back();
      const std::vector<float> expected = SumInRankOrder(total, comm.size());
      const auto own = std::span(expected).subspan(begins[comm.rank()], counts[comm.rank()]);
      std::vector<float> sent = Summands(total, comm.rank());
      std::vector<float> received(counts[comm.rank()]);
      TESSERA_RETURN_IF_ERROR(Finish(comm, comm.ReduceScatterSum(sent, received, counts), "reduce-scatter"));
      EXPECT_TRUE(BitwiseEqual(received, own)) << unit;
      const auto in_place = std::span(sent).subspan(begins[comm.rank()], counts[comm.rank()]);
      TESSERA_RETURN_IF_ERROR(Finish(comm, comm.ReduceScatterSum(sent, in_place, counts), "reduce-scatter in place"));
      EXPECT_TRUE(BitwiseEqual(in_place, own)) << unit;
    }
    return absl::OkStatus();
  });
}

TEST_P(Conformance, AllReduceSumsInRankOrder) {
  Run([](Communicator& comm) -> Status {
    for (const int64_t count : {0, 1, 3, 1000, 20'011}) {
      const std::vector<float> expected = SumInRankOrder(count, comm.size());
      std::vector<float> sent = Summands(count, comm.rank());
      for (int repeat = 0; repeat < 3; ++repeat) {
        std::vector<float> received(count);
        TESSERA_RETURN_IF_ERROR(Finish(comm, comm.AllReduceSum(sent, received), "all-reduce"));
        EXPECT_TRUE(BitwiseEqual(received, expected)) << count;
      }
      TESSERA_RETURN_IF_ERROR(Finish(comm, comm.AllReduceSum(sent, sent), "all-reduce in place"));
      EXPECT_TRUE(BitwiseEqual(sent, expected)) << count;
    }
    return absl::OkStatus();
  });
}

TEST_P(Conformance, BroadcastFromEveryRoot) {
  Run([](Communicator& comm) -> Status {
    for (int root = 0; root < comm.size(); ++root) {
      for (const int64_t length : {0, 1, 70'000}) {
        std::vector<std::byte> data = comm.rank() == root ? Pattern(length, root) : std::vector<std::byte>(length);
        TESSERA_RETURN_IF_ERROR(Finish(comm, comm.Broadcast(data, root), "broadcast"));
        EXPECT_EQ(data, Pattern(length, root));
      }
    }
    return absl::OkStatus();
  });
}

// Nobody leaves a barrier before the last has entered. Threads, and processes of one host, share the clock.
TEST_P(Conformance, BarrierWaitsForTheLast) {
  Run([](Communicator& comm) -> Status {
    const int last = comm.size() - 1;
    const auto now = [] { return std::chrono::steady_clock::now().time_since_epoch().count(); };
    if (comm.rank() == last) std::this_thread::sleep_for(std::chrono::milliseconds(50));
    int64_t entered = now();
    TESSERA_RETURN_IF_ERROR(Finish(comm, comm.Barrier(), "barrier"));
    const int64_t left = now();
    TESSERA_RETURN_IF_ERROR(
        Finish(comm, comm.Broadcast(std::as_writable_bytes(std::span(&entered, 1)), last), "broadcast"));
    EXPECT_GE(left, entered);
    return absl::OkStatus();
  });
}

TEST_P(Conformance, CollectivesOverlapEachOtherAndMessages) {
  Run([](Communicator& comm) -> Status {
    constexpr int64_t kCount = 2000;
    const int next = (comm.rank() + 1) % comm.size();
    const int previous = (comm.rank() + comm.size() - 1) % comm.size();
    const std::vector<float> sent = Summands(kCount, comm.rank());
    std::vector<std::vector<float>> sums(4, std::vector<float>(kCount));
    std::vector<std::byte> ring(kCount), root_data = comm.rank() == 0 ? Pattern(5000, 0) : std::vector<std::byte>(5000);
    const std::vector<std::byte> mine = Pattern(kCount, comm.rank());
    std::vector<Request> requests;
    for (auto& sum : sums) {
      TESSERA_ASSIGN_OR_RETURN(requests.emplace_back(), comm.AllReduceSum(sent, sum));
    }
    TESSERA_ASSIGN_OR_RETURN(requests.emplace_back(), comm.Send(mine, next, 0));
    TESSERA_ASSIGN_OR_RETURN(requests.emplace_back(), comm.Broadcast(root_data, 0));
    TESSERA_ASSIGN_OR_RETURN(requests.emplace_back(), comm.Receive(ring, previous, 0));
    // Waited for in turn: a stage of a later request starts only when it is tested, so this also shows that no rank's
    // order of waiting matters.
    const int first = comm.rank() % static_cast<int>(requests.size());
    bool all_done = false;
    while (!all_done) {
      all_done = true;
      TESSERA_RETURN_IF_ERROR(comm.Health());
      for (size_t i = 0; i < requests.size(); ++i) {
        TESSERA_ASSIGN_OR_RETURN(const bool done, requests[(first + i) % requests.size()].Test());
        all_done = all_done && done;
      }
    }
    for (const auto& sum : sums) EXPECT_TRUE(BitwiseEqual(sum, SumInRankOrder(kCount, comm.size())));
    EXPECT_EQ(ring, Pattern(kCount, previous));
    EXPECT_EQ(root_data, Pattern(5000, 0));
    return absl::OkStatus();
  });
}

}  // namespace
}  // namespace tessera::testing
