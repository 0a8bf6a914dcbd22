// Liveness with a clock that the test moves.
#include "collectives/liveness.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <memory>
#include <set>

#include "collectives/host_identity.h"

namespace tessera {
namespace {

using namespace std::chrono_literals;

// A world whose gossip arrives at once. Ranks can stop, die, and be fed progress.
class LivenessTest : public ::testing::Test {
 protected:
  void MakeWorld(int size, std::chrono::milliseconds deadline = 30s) {
    for (int r = 0; r < size; ++r) {
      ranks_.push_back(std::make_unique<Liveness>(
          LivenessOptions{.rank = r,
                          .size = size,
                          .deadline = deadline,
                          .finished_ranks_beat = finished_ranks_beat_,
                          .host = 1,
                          .pid = 100 + r,
                          .is_gone = [this](int rank, const RankRecord&) { return gone_.contains(rank); },
                          .now = [this] { return now_; }}));
    }
  }
  // Beats of 100 ms, each followed by one round of gossip.
  void Pass(std::chrono::milliseconds time) {
    for (const auto end = now_ + time; now_ < end;) {
      now_ += 100ms;
      for (size_t r = 0; r < ranks_.size(); ++r) {
        if (stopped_.contains(r) || gone_.contains(r)) continue;
        const auto table = ranks_[r]->Beat();
        const int peer = ranks_[r]->NextGossipPeer();
        if (peer >= 0 && !stopped_.contains(peer) && !gone_.contains(peer)) ranks_[peer]->Merge(table);
      }
    }
  }
  std::string Message(int rank) const { return std::string(ranks_[rank]->Health().message()); }

  std::chrono::steady_clock::time_point now_{1000s};
  std::vector<std::unique_ptr<Liveness>> ranks_;
  std::set<int> stopped_;
  bool finished_ranks_beat_ = false;
  std::set<int> gone_;
};

TEST_F(LivenessTest, GossipReachesEveryRankInLogarithmicRounds) {
  MakeWorld(16);
  Pass(100ms);
  ranks_[5]->Report({RankState::kComputing, 42});
  Pass(400ms);
  for (const auto& rank : ranks_) {
    const auto table = rank->Beat();
    EXPECT_EQ(table[5].step, 42);
    for (const RankRecord& record : table) EXPECT_GE(record.sequence, 1);
  }
}

TEST_F(LivenessTest, GossipPeersAreAtPowersOfTwo) {
  MakeWorld(6);
  EXPECT_EQ(ranks_[4]->NextGossipPeer(), 5);
  EXPECT_EQ(ranks_[4]->NextGossipPeer(), 0);
  EXPECT_EQ(ranks_[4]->NextGossipPeer(), 2);
  EXPECT_EQ(ranks_[4]->NextGossipPeer(), 5);
  Liveness alone(LivenessOptions{});
  EXPECT_EQ(alone.NextGossipPeer(), -1);
}

TEST_F(LivenessTest, SilentRankIsNamedWithItsStepAfterHalfTheDeadline) {
  MakeWorld(4);
  Pass(1s);
  ranks_[3]->Report({RankState::kComputing, 17});
  Pass(1s);
  stopped_.insert(3);
  Pass(14500ms);
  for (int r = 0; r < 3; ++r) EXPECT_EQ(Message(r), "");
  Pass(1s);
  for (int r = 0; r < 3; ++r) {
    EXPECT_EQ(ranks_[r]->Health().code(), absl::StatusCode::kUnavailable);
    EXPECT_EQ(BlamedRank(ranks_[r]->Health()), 3);
    EXPECT_NE(Message(r).find("rank 3 has "), std::string::npos) << Message(r);
    EXPECT_NE(Message(r).find("; last seen in plan step 17 (computing)"), std::string::npos) << Message(r);
  }
  int by_silence = 0;
  for (int r = 0; r < 3; ++r) by_silence += Message(r).starts_with("rank 3 has not been heard from for 15.");
  EXPECT_GE(by_silence, 1);
}

TEST_F(LivenessTest, VerdictStaysEvenWhenTheRankReturns) {
  MakeWorld(2);
  Pass(1s);
  stopped_.insert(1);
  Pass(16s);
  const std::string verdict = Message(0);
  EXPECT_NE(verdict, "");
  stopped_.clear();
  Pass(10s);
  EXPECT_EQ(Message(0), verdict);
  EXPECT_EQ(Message(1), "rank 0 has given up on this rank (1); last seen before its first plan step (idle)");
}

TEST_F(LivenessTest, NeverHeardFrom) {
  MakeWorld(3);
  stopped_.insert(2);
  Pass(16s);
  EXPECT_NE(Message(0).find("it was never heard from"), std::string::npos) << Message(0);
}

TEST_F(LivenessTest, LongComputeStepIsNotAccused) {
  MakeWorld(3);
  ranks_[0]->Report({RankState::kWaiting, 9});
  ranks_[1]->Report({RankState::kComputing, 9});
  ranks_[2]->Report({RankState::kWaiting, 9});
  Pass(600s);
  for (int r = 0; r < 3; ++r) EXPECT_EQ(Message(r), "");
}

TEST_F(LivenessTest, StandstillNamesEveryRankAndItsStep) {
  MakeWorld(3);
  ranks_[0]->Report({RankState::kWaiting, 9});
  ranks_[1]->Report({RankState::kIdle, 3});
  ranks_[2]->Report({RankState::kWaiting, 9});
  Pass(29s);
  EXPECT_EQ(Message(0), "");
  Pass(3s);
  for (const int r : {0, 1, 2}) {
    EXPECT_EQ(ranks_[r]->Health().code(), absl::StatusCode::kDeadlineExceeded);
    EXPECT_TRUE(Message(r).starts_with("no rank has made progress for 30.")) << Message(r);
    EXPECT_TRUE(
        Message(r).ends_with("; rank 1 is idle in plan step 3, rank 0 waits in plan step 9, rank 2 waits in "
                             "plan step 9"))
        << Message(r);
    EXPECT_TRUE(IsPeerFailure(ranks_[r]->Health()));
    EXPECT_EQ(BlamedRank(ranks_[r]->Health()), std::nullopt);
  }
}

TEST_F(LivenessTest, AnyAdvanceEndsAStandstill) {
  MakeWorld(2);
  ranks_[0]->Report({RankState::kWaiting, 9});
  ranks_[1]->Report({RankState::kWaiting, 9});
  for (int i = 0; i < 5; ++i) {
    Pass(25s);
    ranks_[1]->NoteAdvance();
  }
  EXPECT_EQ(Message(0), "");
}

TEST_F(LivenessTest, IdleWorldDoesNotTimeOut) {
  MakeWorld(3);
  Pass(600s);
  for (int r = 0; r < 3; ++r) EXPECT_EQ(Message(r), "");
}

TEST_F(LivenessTest, DeadProcessIsNamedWithinABeat) {
  MakeWorld(4);
  ranks_[2]->Report({RankState::kComputing, 5});
  Pass(500ms);
  gone_.insert(2);
  Pass(100ms);
  EXPECT_EQ(Message(0), "rank 2 (pid 102) is gone; last seen in plan step 5 (computing)");
  EXPECT_EQ(ranks_[1]->DescribeGonePeers(), "rank 2 (pid 102) is gone; it was last seen in plan step 5 (computing)");
}

// Rank 0 notices first, fails and exits. The others must go on naming rank 3.
TEST_F(LivenessTest, TheFirstCauseIsNamedNotItsConsequences) {
  MakeWorld(4);
  ranks_[3]->Report({RankState::kComputing, 8});
  Pass(1s);
  ranks_[3]->Report({RankState::kFailed, 8});
  Pass(200ms);
  ranks_[0]->Report({RankState::kFailed, 7});
  ranks_[1]->Report({RankState::kFailed, 7});
  Pass(300ms);
  gone_ = {0, 1, 3};
  Pass(1s);
  EXPECT_EQ(BlamedRank(ranks_[2]->Health()), 3) << Message(2);
  EXPECT_TRUE(Message(2).ends_with("last seen in plan step 8 (failed)")) << Message(2);
}

TEST_F(LivenessTest, FinishedPeersAreAnErrorOnlyToAWaitingRankLeftAlone) {
  MakeWorld(3, 8s);
  ranks_[0]->Report({RankState::kWaiting, 4});
  ranks_[1]->Report({RankState::kFinished, 9});
  Pass(500ms);
  stopped_.insert(1);
  ranks_[2]->Report({RankState::kComputing, 4});
  Pass(30s);
  EXPECT_EQ(Message(0), "");
  ranks_[2]->Report({RankState::kFinished, 9});
  Pass(700ms);
  EXPECT_EQ(Message(0), "");
  Pass(1s);
  EXPECT_EQ(Message(0), "rank 0 waits in plan step 4, but every other rank has finished");
  EXPECT_EQ(Message(2), "");
}

TEST_F(LivenessTest, AFinishedRankThatMustStillBeatIsMissed) {
  finished_ranks_beat_ = true;
  MakeWorld(3, 8s);
  ranks_[0]->Report({RankState::kFinished, 9});
  ranks_[1]->Report({RankState::kFinished, 9});
  Pass(500ms);
  stopped_.insert(1);
  ranks_[2]->Report({RankState::kComputing, 4});
  Pass(6s);
  EXPECT_NE(Message(0).find("rank 1 has not been heard from for"), std::string::npos) << Message(0);
  EXPECT_EQ(Message(2).rfind("rank 1 has", 0), 0u) << Message(2);
}

TEST_F(LivenessTest, ARankThatWasStoppedItselfAccusesNobody) {
  MakeWorld(3, 60s);
  Pass(1s);
  stopped_ = {0, 1, 2};
  Pass(25s);
  stopped_.clear();
  now_ += 15s;
  Pass(1s);
  for (int r = 0; r < 3; ++r) EXPECT_EQ(Message(r), "");
}

TEST_F(LivenessTest, DeafRankSaysSo) {
  MakeWorld(2);
  Pass(1s);
  now_ += 31s;
  EXPECT_EQ(Message(0), "the heartbeat of rank 0 itself has stood still for 31.0 s");
}

TEST(HostIdentity, IsStableAndProcessesAreFound) {
  EXPECT_EQ(HostIdentity(), HostIdentity());
  EXPECT_NE(HostIdentity(), 0u);
  EXPECT_FALSE(ProcessIsGone(getpid()));
  EXPECT_FALSE(ProcessIsGone(0));
  EXPECT_TRUE(ProcessIsGone(0x7ffffffe));
}

}  // namespace
}  // namespace tessera
