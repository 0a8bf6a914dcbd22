// Ranks that die, freeze, fail or never answer, and survivors that say so in time.
#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "collectives/inproc/world.h"
#include "collectives/liveness.h"
#include "tests/support/ranks.h"

namespace tessera::testing {
namespace {

using namespace std::chrono_literals;

constexpr auto kDeadline = 1200ms;

InprocOptions WithFault(InprocFault fault, bool eager) {
  InprocOptions options;
  options.deadline = kDeadline;
  options.eager = eager;
  options.faults = {fault};
  return options;
}

// Steps of a compute part, long enough for a heartbeat, and an exchange with the next rank.
Status RingSteps(Communicator& comm, int steps) {
  std::vector<std::byte> out(64), in(64);
  for (int step = 0; step < steps; ++step) {
    comm.ReportProgress({RankState::kComputing, step});
    std::this_thread::sleep_for(100ms);
    TESSERA_ASSIGN_OR_RETURN(Request receive, comm.Receive(in, (comm.rank() + comm.size() - 1) % comm.size(), 0));
    TESSERA_ASSIGN_OR_RETURN(Request send, comm.Send(out, (comm.rank() + 1) % comm.size(), 0));
    TESSERA_RETURN_IF_ERROR(Wait(comm, receive, "ring receive"));
    TESSERA_RETURN_IF_ERROR(Wait(comm, send, "ring send"));
  }
  return absl::OkStatus();
}

class Faults : public ::testing::TestWithParam<bool> {};

TEST_P(Faults, KilledRankIsNamedAtOnceWithItsStep) {
  std::vector<Status> seen(4);
  const auto begin = std::chrono::steady_clock::now();
  const Status status = RunRanks(4, WithFault({InprocFault::Kind::kKill, 2, 6}, GetParam()),
                                 [&](Communicator& comm) { return seen[comm.rank()] = RingSteps(comm, 20); });
  EXPECT_LT(std::chrono::steady_clock::now() - begin, 400ms + kDeadline / 2);
  EXPECT_EQ(status.message(), "rank 2: rank 2 was killed by fault injection");
  for (const int r : {0, 1, 3}) {
    EXPECT_EQ(BlamedRank(seen[r]), 2) << seen[r];
    EXPECT_NE(seen[r].message().find("last seen in plan step 3 (computing)"), absl::string_view::npos) << seen[r];
  }
}

TEST_P(Faults, FrozenRankIsNamedWithinHalfTheDeadlineAndReleased) {
  std::vector<Status> seen(4);
  const auto begin = std::chrono::steady_clock::now();
  const Status status = RunRanks(4, WithFault({InprocFault::Kind::kFreeze, 1, 4}, GetParam()),
                                 [&](Communicator& comm) { return seen[comm.rank()] = RingSteps(comm, 20); });
  EXPECT_LT(std::chrono::steady_clock::now() - begin, 300ms + kDeadline);
  EXPECT_EQ(status.message(), "rank 1: rank 1 was frozen by fault injection");
  for (const int r : {0, 2, 3}) {
    EXPECT_EQ(seen[r].code(), absl::StatusCode::kUnavailable);
    EXPECT_EQ(BlamedRank(seen[r]), 1) << seen[r];
    EXPECT_NE(seen[r].message().find("last seen in plan step 2 (computing)"), absl::string_view::npos) << seen[r];
  }
}

TEST_P(Faults, EveryRankMayFreeze) {
  InprocOptions options = WithFault({InprocFault::Kind::kFreeze, 0, 0}, GetParam());
  options.faults.push_back({InprocFault::Kind::kFreeze, 1, 2});
  EXPECT_FALSE(RunRanks(2, options, [](Communicator& comm) { return RingSteps(comm, 3); }).ok());
}

TEST_P(Faults, SplitAndCollectivesEndToo) {
  std::vector<Status> seen(3);
  const Status status = RunRanks(3, WithFault({InprocFault::Kind::kFreeze, 0, 1}, GetParam()), [&](Communicator& comm) {
    const auto program = [&]() -> Status {
      TESSERA_ASSIGN_OR_RETURN(auto group, comm.Split(0, 0));
      std::vector<float> values(100);
      TESSERA_RETURN_IF_ERROR(Finish(*group, group->AllReduceSum(values, values), "all-reduce"));
      TESSERA_ASSIGN_OR_RETURN(auto again, comm.Split(0, 0));
      return absl::OkStatus();
    };
    return seen[comm.rank()] = program();
  });
  EXPECT_FALSE(status.ok());
  for (const int r : {1, 2}) EXPECT_EQ(BlamedRank(seen[r]), 0) << seen[r];
}

INSTANTIATE_TEST_SUITE_P(Sends, Faults, ::testing::Bool(),
                         [](const auto& info) { return info.param ? "Eager" : "Rendezvous"; });

TEST(Inproc, ErrorOfOneRankEndsTheOthersAndIsReturned) {
  std::vector<Status> seen(3);
  const auto begin = std::chrono::steady_clock::now();
  const Status status = RunRanks(3, {}, [&](Communicator& comm) {
    comm.ReportProgress({RankState::kComputing, 5});
    if (comm.rank() == 2) return absl::ResourceExhaustedError("no memory");
    return seen[comm.rank()] = Finish(comm, comm.Barrier(), "barrier");
  });
  EXPECT_LT(std::chrono::steady_clock::now() - begin, 5s);  // of a deadline of 30 s
  EXPECT_EQ(status.ToString(), "RESOURCE_EXHAUSTED: rank 2: no memory");
  EXPECT_EQ(BlamedRank(seen[0]), 2) << seen[0];
  EXPECT_EQ(BlamedRank(seen[1]), 2) << seen[1];
}

TEST(Inproc, EverybodyWaitingForNothingIsAStandstill) {
  const Status status = RunRanks(2, {.deadline = 400ms}, [](Communicator& comm) {
    comm.ReportProgress({RankState::kComputing, 9});
    std::byte byte;
    return Finish(comm, comm.Receive({&byte, 1}, 1 - comm.rank(), 0), "a message nobody sends");
  });
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_NE(status.message().find("waiting for a message nobody sends: no rank has made progress for 0.4 s; rank 0 "
                                  "waits in plan step 9, rank 1 waits in plan step 9"),
            absl::string_view::npos)
      << status;
}

TEST(Inproc, WaitingForAFinishedRankEnds) {
  const auto begin = std::chrono::steady_clock::now();
  const Status status = RunRanks(2, {.deadline = 4s}, [](Communicator& comm) -> Status {
    if (comm.rank() == 1) return absl::OkStatus();
    std::byte byte;
    return Finish(comm, comm.Receive({&byte, 1}, 1, 0), "a message");
  });
  EXPECT_LT(std::chrono::steady_clock::now() - begin, 2s);
  EXPECT_NE(status.message().find("every other rank has finished"), absl::string_view::npos) << status;
}

TEST(Inproc, MessageOfAFinishedRankArrives) {
  const Status status = RunRanks(2, {.deadline = 1s}, [](Communicator& comm) -> Status {
    std::byte byte{7};
    if (comm.rank() == 1) return Finish(comm, comm.Send({&byte, 1}, 0, 0), "send");
    std::this_thread::sleep_for(700ms);
    return Finish(comm, comm.Receive({&byte, 1}, 1, 0), "receive");
  });
  EXPECT_TRUE(status.ok()) << status;
}

TEST(Inproc, LongComputeStepIsNotAccused) {
  const Status status = RunRanks(3, {.deadline = 300ms}, [](Communicator& comm) {
    comm.ReportProgress({RankState::kComputing, 1});
    if (comm.rank() == 1) std::this_thread::sleep_for(1500ms);
    return Finish(comm, comm.Barrier(), "barrier");
  });
  EXPECT_TRUE(status.ok()) << status;
}

TEST(Inproc, WaitRestoresWhatWasReported) {
  const Status status = RunRanks(2, {}, [](Communicator& comm) {
    comm.ReportProgress({RankState::kComputing, 3});
    const Status done = Finish(comm, comm.Barrier(), "barrier");
    EXPECT_EQ(comm.progress(), (RankProgress{RankState::kComputing, 3}));
    return done;
  });
  EXPECT_TRUE(status.ok()) << status;
}

TEST(Inproc, RefusesEmptyWorldsAndDeadlines) {
  EXPECT_EQ(MakeInprocWorld(0).status().message(), "a world of 0 ranks has no rank");
  EXPECT_EQ(MakeInprocWorld(1, {.deadline = 0ms}).status().message(), "the deadline is not positive");
}

}  // namespace
}  // namespace tessera::testing
