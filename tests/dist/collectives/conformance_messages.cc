// Point-to-point messages, split and refusals.
#include "tests/dist/collectives/conformance.h"

namespace tessera::testing {
namespace {

TEST_P(Conformance, RingOfEveryLength) {
  Run([](Communicator& comm) -> Status {
    const int next = (comm.rank() + 1) % comm.size();
    const int previous = (comm.rank() + comm.size() - 1) % comm.size();
    for (const int64_t length : {0, 1, 999, 1000, 1001, 4096, 300'000}) {
      std::vector<std::byte> received(length);
      const std::vector<std::byte> sent = Pattern(length, comm.rank());
      TESSERA_ASSIGN_OR_RETURN(Request receive, comm.Receive(received, previous, 3));
      TESSERA_ASSIGN_OR_RETURN(Request send, comm.Send(sent, next, 3));
      TESSERA_RETURN_IF_ERROR(Wait(comm, receive, "ring receive"));
      TESSERA_RETURN_IF_ERROR(Wait(comm, send, "ring send"));
      EXPECT_EQ(received, Pattern(length, previous)) << length;
    }
    return absl::OkStatus();
  });
}

TEST_P(Conformance, BigMessage) {
  Run([](Communicator& comm) -> Status {
    if (comm.rank() > 1 || comm.size() < 2) return absl::OkStatus();
    std::vector<std::byte> bytes = Pattern(20 << 20, 0);
    if (comm.rank() == 0) return Finish(comm, comm.Send(bytes, 1, 0), "big send");
    std::vector<std::byte> received(bytes.size());
    TESSERA_RETURN_IF_ERROR(Finish(comm, comm.Receive(received, 0, 0), "big receive"));
    EXPECT_TRUE(received == bytes);
    return absl::OkStatus();
  });
}

// Receives are posted in the reverse of the order of sending, so matching goes by peer and tag.
TEST_P(Conformance, ManyOutstandingMessagesMatchByPeerAndTag) {
  Run([](Communicator& comm) -> Status {
    constexpr int kTags = 20;
    constexpr int64_t kLength = 1500;
    const auto tag_of = [](int t) { return t == kTags - 1 ? kTagLimit - 1 : t; };
    std::vector<std::vector<std::byte>> sent, received(comm.size() * kTags, std::vector<std::byte>(kLength));
    std::vector<Request> requests;
    for (int t = 0; t < kTags; ++t) sent.push_back(Pattern(kLength, comm.rank(), t));
    for (int t = 0; t < kTags; ++t) {
      for (int peer = 0; peer < comm.size(); ++peer) {
        TESSERA_ASSIGN_OR_RETURN(requests.emplace_back(), comm.Send(sent[t], peer, tag_of(t)));
      }
    }
    for (int t = kTags - 1; t >= 0; --t) {
      for (int peer = comm.size() - 1; peer >= 0; --peer) {
        TESSERA_ASSIGN_OR_RETURN(requests.emplace_back(), comm.Receive(received[peer * kTags + t], peer, tag_of(t)));
      }
    }
    for (Request& request : requests) TESSERA_RETURN_IF_ERROR(Wait(comm, request, "one of many"));
    for (int peer = 0; peer < comm.size(); ++peer) {
      for (int t = 0; t < kTags; ++t) EXPECT_EQ(received[peer * kTags + t], Pattern(kLength, peer, t));
    }
    return absl::OkStatus();
  });
}

TEST_P(Conformance, MessagesOfOneTagArriveInOrder) {
  Run([](Communicator& comm) -> Status {
    constexpr int kMessages = 50;
    const int next = (comm.rank() + 1) % comm.size();
    const int previous = (comm.rank() + comm.size() - 1) % comm.size();
    std::vector<int> sent(kMessages), received(kMessages, -1);
    std::vector<Request> requests;
    for (int i = 0; i < kMessages; ++i) {
      sent[i] = i;
      TESSERA_ASSIGN_OR_RETURN(requests.emplace_back(), comm.Send(std::as_bytes(std::span(&sent[i], 1)), next, 5));
    }
    for (int i = 0; i < kMessages; ++i) {
      TESSERA_ASSIGN_OR_RETURN(requests.emplace_back(),
                               comm.Receive(std::as_writable_bytes(std::span(&received[i], 1)), previous, 5));
    }
    for (Request& request : requests) TESSERA_RETURN_IF_ERROR(Wait(comm, request, "one of a row"));
    EXPECT_EQ(received, sent);
    return absl::OkStatus();
  });
}

TEST_P(Conformance, ShortMessageInLongReceiveIsRefused) {
  Run([](Communicator& comm) -> Status {
    std::vector<std::byte> sent(8), received(16);
    TESSERA_ASSIGN_OR_RETURN(Request send, comm.Send(sent, comm.rank(), 1));
    const Status status = Finish(comm, comm.Receive(received, comm.rank(), 1), "mismatch");
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_NE(status.message().find("a message of 8 bytes met a receive of 16"), absl::string_view::npos) << status;
    return Wait(comm, send, "the send of a mismatch");
  });
}

TEST_P(Conformance, RefusalsSayWhy) {
  Run([](Communicator& comm) -> Status {
    const auto text = [](const StatusOr<Request>& result) { return std::string(result.status().message()); };
    const std::string size = std::to_string(comm.size());
    EXPECT_EQ(text(comm.Send({}, comm.size(), 0)), "peer " + size + " is not a rank of a group of " + size);
    EXPECT_EQ(text(comm.Receive({}, -1, 0)), "peer -1 is not a rank of a group of " + size);
    EXPECT_EQ(text(comm.Send({}, 0, kTagLimit)), "tag 1048576 is not in [0, 1048576)");
    EXPECT_EQ(text(comm.AllGatherV({}, nullptr, {}, {})), "counts has 0 entries for a group of " + size);
    std::vector<int64_t> counts(comm.size(), 0);
    std::vector<float> sums(3);
    EXPECT_EQ(text(comm.ReduceScatterSum(sums, {}, counts)), "send has length 3, but the counts ask for 0");
    counts[0] = -1;
    EXPECT_EQ(text(comm.ReduceScatterSum({}, {}, counts)), "counts has a negative entry");
    EXPECT_EQ(text(comm.AllReduceSum(sums, {})), "receive has length 0, but the counts ask for 3");
    EXPECT_EQ(text(comm.Broadcast({}, -2)), "peer -2 is not a rank of a group of " + size);
    return Finish(comm, comm.Barrier(), "barrier");
  });
}

TEST_P(Conformance, SplitOrdersByKeyAndKeepsTrafficApart) {
  Run([](Communicator& comm) -> Status {
    // Odd and even ranks, in reverse order.
    TESSERA_ASSIGN_OR_RETURN(auto group, comm.Split(comm.rank() % 2, -comm.rank()));
    const int expected_size = (comm.size() + 1 - comm.rank() % 2) / 2;
    EXPECT_EQ(group->size(), expected_size);
    EXPECT_EQ(group->rank(), expected_size - 1 - comm.rank() / 2);
    EXPECT_EQ(comm.traffic(), Traffic{});

    std::vector<int64_t> counts(group->size(), 4), displacements;
    for (int r = 0; r < group->size(); ++r) displacements.push_back(4 * r);
    std::vector<int> world_ranks(group->size(), -1);
    const int mine = comm.rank();
    TESSERA_RETURN_IF_ERROR(
        Finish(*group,
               group->AllGatherV(std::as_bytes(std::span(&mine, 1)), reinterpret_cast<std::byte*>(world_ranks.data()),
                                 counts, displacements),
               "gather in a group"));
    for (int r = 0; r < group->size(); ++r) {
      EXPECT_EQ(world_ranks[r], 2 * (expected_size - 1 - r) + comm.rank() % 2);
    }
    EXPECT_EQ(comm.traffic(), Traffic{});
    EXPECT_EQ(group->traffic().bytes_sent, 4 * (group->size() - 1));
    return absl::OkStatus();
  });
}

// The same peer and tag in the world, a group and a group of the group; negative colours; contexts used again.
TEST_P(Conformance, NestedSplitsDoNotMixMessages) {
  Run([](Communicator& comm) -> Status {
    for (int round = 0; round < 3; ++round) {
      TESSERA_ASSIGN_OR_RETURN(auto group, comm.Split(comm.rank() < 3 ? 0 : -1, 0));
      EXPECT_EQ(group == nullptr, comm.rank() >= 3);
      if (group == nullptr) continue;
      TESSERA_ASSIGN_OR_RETURN(auto pair, group->Split(group->rank() < 2 ? 1 : 2, 0));
      std::vector<Communicator*> levels = {&comm, group.get()};
      if (group->rank() < 2) levels.push_back(pair.get());
      const int peer = group->rank() < 2 && group->size() > 1 ? 1 - group->rank() : group->rank();
      std::vector<int> sent(levels.size()), received(levels.size());
      std::vector<Request> requests;
      for (size_t i = 0; i < levels.size(); ++i) {
        sent[i] = 100 * static_cast<int>(i) + comm.rank();
        TESSERA_ASSIGN_OR_RETURN(requests.emplace_back(),
                                 levels[i]->Send(std::as_bytes(std::span(&sent[i], 1)), peer, 9));
      }
      for (size_t i = levels.size(); i-- > 0;) {
        TESSERA_ASSIGN_OR_RETURN(requests.emplace_back(),
                                 levels[i]->Receive(std::as_writable_bytes(std::span(&received[i], 1)), peer, 9));
      }
      for (Request& request : requests) TESSERA_RETURN_IF_ERROR(Wait(comm, request, "a message of one level"));
      for (size_t i = 0; i < levels.size(); ++i) EXPECT_EQ(received[i], 100 * static_cast<int>(i) + peer);
    }
    return absl::OkStatus();
  });
}

}  // namespace
}  // namespace tessera::testing
