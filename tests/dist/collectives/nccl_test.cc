// What the conformance suite cannot ask of the NCCL communicator: rounds, streams, graphs, errors that come later,
// deadlines, and a new communicator after an abort. ctest runs the suites NcclVersions, SharedGpu, ... on machines of
// their own; see CMakeLists.txt.
#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <numeric>
#include <optional>

#include "collectives/agreement.h"
#include "collectives/mpi/communicator.h"
#include "collectives/nccl/communicator.h"
#include "runtime/device/cuda/buffer.h"
#include "runtime/device/cuda/graph.h"
#include "runtime/device/cuda/stream.h"
#include "tests/dist/collectives/conformance.h"

namespace tessera::testing {
namespace {

using namespace std::chrono_literals;

// One world per test.
class Nccl : public ::testing::Test {
 protected:
  void SetUp() override {
    auto control = MakeMpiWorld();
    ASSERT_TRUE(control.ok()) << control.status();
    control_ = *std::move(control);
    auto device = OpenDeviceOfRank(*control_);
    ASSERT_TRUE(device.ok()) << device.status();
    device_ = *std::move(device);
    for (auto* stream : {&stream_, &other_}) {
      auto made = CudaStream::Create(*device_);
      ASSERT_TRUE(made.ok()) << made.status();
      *stream = *std::move(made);
    }
    Renew({});
  }
  void Renew(const NcclOptions& options) {
    comm_.reset();
    auto comm = MakeNcclCommunicator(*control_, *device_, options);
    ASSERT_TRUE(comm.ok()) << comm.status();
    comm_ = *std::move(comm);
  }
  void Barrier() {
    const Status status = Finish(*control_, control_->Barrier(), "a barrier");
    ASSERT_TRUE(status.ok()) << status;
  }
  void Ok(const Status& status) { ASSERT_TRUE(status.ok()) << status; }
  int rank() const { return comm_->rank(); }
  int size() const { return comm_->size(); }
  CUstream_st* stream() { return stream_->handle(); }

  DeviceBuffer Buffer(int64_t bytes) {
    auto buffer = DeviceBuffer::Allocate(*device_, bytes, "a test", stream());
    EXPECT_TRUE(buffer.ok()) << buffer.status();
    return *std::move(buffer);
  }
  DeviceBuffer Upload(const std::vector<std::byte>& data) {
    DeviceBuffer buffer = Buffer(static_cast<int64_t>(data.size()));
    Ok(CopyAsync(buffer.data(), data.data(), buffer.bytes(), stream()));
    Ok(stream_->Synchronize("an upload"));
    return buffer;
  }
  std::vector<std::byte> Download(const DeviceBuffer& buffer) {
    std::vector<std::byte> data(buffer.bytes());
    Ok(CopyAsync(data.data(), buffer.data(), buffer.bytes(), stream()));
    Ok(stream_->Synchronize("a download"));
    return data;
  }
  // Sums 100 ones of every rank.
  void ExpectThatItWorks() {
    const std::vector<float> ones(100, 1);
    DeviceBuffer buffer = Buffer(400);
    Ok(CopyAsync(buffer.data(), ones.data(), 400, stream()));
    const std::span<float> values(reinterpret_cast<float*>(buffer.data()), 100);
    Ok(comm_->AllReduceSum(values, values, stream()));
    std::vector<float> sums(100);
    Ok(CopyAsync(sums.data(), buffer.data(), 400, stream()));
    Ok(comm_->Wait(stream(), "an all-reduce"));
    EXPECT_EQ(sums, std::vector<float>(100, static_cast<float>(size())));
  }

  std::unique_ptr<Communicator> control_;
  std::optional<CudaDevice> device_;
  std::optional<CudaStream> stream_, other_;
  std::unique_ptr<StreamCommunicator> comm_;
};

// Two messages to every rank, the own one too, of lengths that depend on both sides; some are empty.
TEST_F(Nccl, ExchangeMovesARoundOfMessages) {
  const auto length = [](int from, int to, int i) { return int64_t{(from * 3 + to + i) % 4} * 501; };
  std::vector<DeviceBuffer> sent, received;
  std::vector<SendMessage> sends;
  std::vector<ReceiveMessage> receives;
  Traffic expected;
  for (int i = 0; i < 2; ++i) {
    for (int peer = 0; peer < size(); ++peer) {
      sent.push_back(Upload(Pattern(length(rank(), peer, i), rank(), peer * 2 + i)));
      received.push_back(Buffer(length(peer, rank(), i)));
      sends.push_back({peer, sent.back().data(), sent.back().bytes()});
      receives.push_back({peer, received.back().data(), received.back().bytes()});
      if (peer == rank()) continue;
      expected.bytes_sent += sent.back().bytes();
      expected.bytes_received += received.back().bytes();
      ++expected.messages_sent;
      ++expected.messages_received;
    }
  }
  Ok(comm_->Exchange(sends, receives, stream()));
  Ok(comm_->Wait(stream(), "the round"));
  for (int i = 0; i < 2; ++i) {
    for (int peer = 0; peer < size(); ++peer) {
      EXPECT_EQ(Download(received[i * size() + peer]), Pattern(length(peer, rank(), i), peer, rank() * 2 + i));
    }
  }
  EXPECT_EQ(comm_->traffic(), expected);
  comm_->ResetTraffic();
  EXPECT_EQ(comm_->traffic(), Traffic{});
}

TEST_F(Nccl, RegularAllGather) {
  constexpr int64_t kBytes = 777;
  std::vector<int64_t> counts(size(), kBytes), displacements(size());
  for (int r = 0; r < size(); ++r) displacements[r] = r * kBytes;
  DeviceBuffer own = Upload(Pattern(kBytes, rank())), all = Buffer(size() * kBytes);
  Ok(comm_->AllGatherV({own.data(), kBytes}, all.data(), counts, displacements, stream()));
  // In place, on another stream that knows of the first only through the order of the communicator's operations.
  DeviceBuffer again = Buffer(size() * kBytes);
  Ok(CopyAsync(again.data() + rank() * kBytes, own.data(), kBytes, stream()));
  Ok(stream_->Synchronize("a copy"));
  Ok(comm_->AllGatherV({again.data() + rank() * kBytes, kBytes}, again.data(), counts, displacements,
                       other_->handle()));
  Ok(comm_->Wait(other_->handle(), "an all-gather"));
  std::vector<std::byte> expected;
  for (int r = 0; r < size(); ++r) {
    const auto block = Pattern(kBytes, r);
    expected.insert(expected.end(), block.begin(), block.end());
  }
  EXPECT_EQ(Download(all), expected);
  EXPECT_EQ(Download(again), expected);
  EXPECT_EQ(comm_->traffic().bytes_sent, 2 * (size() - 1) * kBytes);
}

// A ring step and a sum, recorded once and launched three times; the values move on with every launch.
TEST_F(Nccl, GraphsRepeatExchangesAndSums) {
  const int next = (rank() + 1) % size(), previous = (rank() + size() - 1) % size();
  constexpr int64_t kCount = 50;
  DeviceBuffer a = Buffer(kCount * 4), b = Buffer(kCount * 4);
  const std::span<float> values(reinterpret_cast<float*>(a.data()), kCount);
  const SendMessage send{next, a.data(), a.bytes()};
  const ReceiveMessage receive{previous, b.data(), b.bytes()};
  const auto step = [&]() -> Status {
    TESSERA_RETURN_IF_ERROR(comm_->Exchange({&send, 1}, {&receive, 1}, stream()));
    TESSERA_RETURN_IF_ERROR(CopyAsync(a.data(), b.data(), a.bytes(), stream()));
    return comm_->AllReduceSum(values, values, stream());
  };
  if (size() > 1) {
    const Status cold = CudaGraph::Capture(stream(), step).status();
    EXPECT_EQ(cold.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_NE(cold.message().find("cannot be made while a graph is captured: run the step once before"),
              absl::string_view::npos)
        << cold;
  }
  Ok(step());
  auto graph = CudaGraph::Capture(stream(), step);
  ASSERT_TRUE(graph.ok()) << graph.status();
  std::vector<float> host(kCount, static_cast<float>(rank()));
  Ok(CopyAsync(a.data(), host.data(), a.bytes(), stream()));
  for (int launch = 0; launch < 3; ++launch) Ok(graph->Launch(stream()));
  Ok(comm_->Wait(stream(), "three steps"));
  Ok(CopyAsync(host.data(), a.data(), a.bytes(), stream()));
  Ok(stream_->Synchronize("a download"));
  const auto ranks = static_cast<float>(size());
  EXPECT_EQ(host, std::vector<float>(kCount, ranks * (ranks - 1) / 2 * ranks * ranks));
}

TEST_F(Nccl, AnErrorThatComesLaterStays) {
  if (size() < 2) GTEST_SKIP() << "one rank";
  DeviceBuffer buffer = Buffer(16);
  const SendMessage send{1, buffer.data(), 8};
  const ReceiveMessage receive{0, buffer.data(), 16};
  if (rank() == 0) {
    Ok(comm_->Exchange({&send, 1}, {}, stream()));
    Ok(comm_->Wait(stream(), "a short message"));
  } else if (rank() == 1) {
    Status status = comm_->Exchange({}, {&receive, 1}, stream());  // which may see it already
    if (status.ok()) status = comm_->Wait(stream(), "a short message");
    EXPECT_EQ(status.code(), absl::StatusCode::kInternal) << status;
    EXPECT_NE(status.message().find("a message met a receive of 16 bytes, which is not its length"),
              absl::string_view::npos)
        << status;
    EXPECT_EQ(comm_->Poll(), status);
    EXPECT_EQ(comm_->Exchange({}, {&receive, 1}, stream()), status);
    EXPECT_EQ(comm_->Broadcast({buffer.data(), 16}, 0, stream()), status);
    comm_->Abort(absl::CancelledError("too late"));
    EXPECT_EQ(comm_->Wait(stream(), "anything"), status);
  }
  Barrier();
  Renew({});
  ExpectThatItWorks();
}

TEST_F(Nccl, APeerThatDoesNotComeEndsInTheDeadline) {
  if (size() < 2) GTEST_SKIP() << "one rank";
  Renew({.deadline = 400ms});
  DeviceBuffer buffer = Buffer(16);
  control_->ReportProgress({RankState::kComputing, 12});
  if (rank() == 0) {
    const ReceiveMessage receive{1, buffer.data(), 16};
    Ok(comm_->Exchange({}, {&receive, 1}, stream()));
    const auto begin = std::chrono::steady_clock::now();
    const Status status = comm_->Wait(stream(), "a block of keys");
    EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
    EXPECT_EQ(status.message(),
              "waiting for a block of keys: the stream of rank 0 in plan step 12 has not finished within 400 ms");
    EXPECT_LT(std::chrono::steady_clock::now() - begin, 3s);
    EXPECT_EQ(comm_->Exchange({}, {&receive, 1}, stream()), status);
    Ok(stream_->Synchronize("the aborted operation", 3000ms));  // it has left the stream
  }
  Barrier();
  Renew({});
  ExpectThatItWorks();
}

// Two ranks that call in different orders wait for each other: the deadline ends both.
TEST_F(Nccl, OperationsInDifferentOrdersEndInTheDeadline) {
  if (size() < 2) GTEST_SKIP() << "one rank";
  Renew({.deadline = 400ms});
  DeviceBuffer buffer = Buffer(8 * size());
  std::vector<int64_t> counts(size(), 8), displacements(size());
  for (int r = 0; r < size(); ++r) displacements[r] = 8 * r;
  const auto gather = [&] {
    Ok(comm_->AllGatherV({buffer.data() + 8 * rank(), 8}, buffer.data(), counts, displacements, stream()));
  };
  const auto broadcast = [&] { Ok(comm_->Broadcast({buffer.data(), 8}, 0, stream())); };
  if (rank() == 0) {
    gather();
    broadcast();
  } else {
    broadcast();
    gather();
  }
  EXPECT_EQ(comm_->Wait(stream(), "two collectives").code(), absl::StatusCode::kDeadlineExceeded);
  Barrier();
  Renew({});
  ExpectThatItWorks();
}

TEST_F(Nccl, AbortGivesTheReasonToLaterCalls) {
  comm_->Abort(absl::UnavailableError("rank 3 is gone"));
  EXPECT_EQ(comm_->Poll().message(), "rank 3 is gone");
  EXPECT_EQ(comm_->Exchange({}, {}, stream()).message(), "rank 3 is gone");
  Barrier();
  Renew({});
  ExpectThatItWorks();
}

TEST_F(Nccl, RefusalsSayWhy) {
  DeviceBuffer buffer = Buffer(16);
  const std::string group = " is not a rank of a group of " + std::to_string(size());
  const SendMessage no_peer{size(), buffer.data(), 4}, negative{0, buffer.data(), -4}, own{rank(), buffer.data(), 4};
  EXPECT_EQ(comm_->Exchange({&no_peer, 1}, {}, stream()).message(), "peer " + std::to_string(size()) + group);
  EXPECT_EQ(comm_->Exchange({&negative, 1}, {}, stream()).message(), "a message of -4 bytes");
  EXPECT_EQ(comm_->Exchange({&own, 1}, {}, stream()).message(),
            "this rank (" + std::to_string(rank()) + ") sends 1 messages to itself and receives 0");
  const ReceiveMessage longer{rank(), buffer.data(), 8};
  EXPECT_EQ(comm_->Exchange({&own, 1}, {&longer, 1}, stream()).message(),
            "receive 0 of this rank (" + std::to_string(rank()) + ") from itself has no send of 8 bytes");
  EXPECT_EQ(comm_->AllGatherV({}, nullptr, {}, {}, stream()).message(),
            "counts has 0 entries for a group of " + std::to_string(size()));
  ExpectThatItWorks();  // a refused argument breaks nothing
}

TEST_F(Nccl, HostMemoryIsRefused) {
  if (size() < 2) GTEST_SKIP() << "one rank";
  std::vector<std::byte> host(16);
  const SendMessage send{(rank() + 1) % size(), host.data(), 16};
  const Status status = comm_->Exchange({&send, 1}, {}, stream());
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  Barrier();
  Renew({});
  ExpectThatItWorks();
}

TEST_F(Nccl, CreationFailsOnEveryRankAlike) {
  const int last = size() - 1;
  const NcclOptions bad{.deadline = 0ms};
  const Status status = MakeNcclCommunicator(*control_, *device_, rank() == last ? bad : NcclOptions{}).status();
  const std::string text = "the deadline is not positive";
  EXPECT_EQ(status.message(), size() == 1 ? text : "rank " + std::to_string(last) + ", preparing NCCL: " + text);
  EXPECT_TRUE(IsAgreed(status));
  ExpectThatItWorks();
}

// On machines of their own.

class NcclMachine : public ::testing::Test {
 protected:
  void SetUp() override {
    auto control = MakeMpiWorld();
    ASSERT_TRUE(control.ok()) << control.status();
    control_ = *std::move(control);
  }
  Status Create(int device_index, const NcclOptions& options = {}) {
    TESSERA_ASSIGN_OR_RETURN(const CudaDevice device, CudaDevice::Open(device_index));
    return MakeNcclCommunicator(*control_, device, options).status();
  }
  std::unique_ptr<Communicator> control_;
};

using OldNccl = NcclMachine;
TEST_F(OldNccl, IsRefusedWithItsNumber) {
  EXPECT_EQ(NcclVersion().value(), "2.17.1");
  const Status status = Create(control_->rank());
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(status.message(), "NCCL 2.17.1 is too old: Tessera needs 2.18.0");
}

using TooFewGpus = NcclMachine;
TEST_F(TooFewGpus, AreCountedOnEveryRank) {
  const Status status = OpenDeviceOfRank(*control_).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(status.message(),
            "2 ranks on this node, but 1 GPU: start at most 1 per node, or allow ranks to share a GPU (NCCL 2.30 or "
            "later)");
  EXPECT_EQ(Create(0).message(), "ranks 0 and 1 are on the same GPU, which NCCL 2.28.9 cannot do: 2.30.0 or later can");
}

using SharedGpu = NcclMachine;
TEST_F(SharedGpu, IsAllowedFromNccl230OnWhenAskedFor) {
  EXPECT_EQ(Create(0).message(),
            "ranks 0 and 1 are on the same GPU, which is not allowed; set may_share_gpu, and "
            "NCCL_MULTI_RANK_GPU_ENABLE=1 for NCCL");
  const StatusOr<CudaDevice> device = OpenDeviceOfRank(*control_, true);
  ASSERT_TRUE(device.ok()) << device.status();
  EXPECT_EQ(device->index(), 0);
  const Status status = Create(0, {.may_share_gpu = true});
  EXPECT_TRUE(status.ok()) << status;
}

using MixedGpus = NcclMachine;
TEST_F(MixedGpus, AreRefused) {
  if (control_->rank() == 1) setenv("VGPU_ARCH", "8.0", 1);  // read by the first CUDA call of the process
  EXPECT_EQ(Create(control_->rank()).message(),
            "rank 0 has a GPU of compute capability 9.0, but rank 1 has 8.0: ranks would round differently");
}

using NoDriver = NcclMachine;
TEST_F(NoDriver, IsSaidOnceForAllRanks) {
  const Status status = OpenDeviceOfRank(*control_).status();
  EXPECT_EQ(status.message(),
            "looking for GPUs: CUDA driver version is insufficient for CUDA runtime version "
            "(cudaErrorInsufficientDriver); this machine has no NVIDIA driver");
  EXPECT_TRUE(IsAgreed(status));
}

}  // namespace
}  // namespace tessera::testing
