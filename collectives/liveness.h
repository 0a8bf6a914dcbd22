// Who is alive: the table every rank keeps about all ranks, how tables spread, and when a rank is given up.
//
// Free of transport and of threads. A transport calls Beat() at a fixed interval, sends the returned table to the peer
// that NextGossipPeer() names, and passes every table it receives to Merge(). With peers at distance 1, 2, 4, ... in
// turn (dissemination) a change at one rank is known to all P within about log2(P) beats.
//
// Judgement happens inside Beat() and Merge(); Health() only reads the verdict. The first verdict stays. A rank that
// has given up on another says so in its record, and whoever reads that adopts it, so all survivors name the same
// culprit instead of each other.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "collectives/communicator.h"

namespace tessera {

inline constexpr int32_t kBlamesNobody = -1;
inline constexpr int32_t kBlamesEverybody = -2;  // no rank has made progress

// What is known about one rank; exchanged as raw bytes between processes of one build.
struct RankRecord {
  int64_t sequence = 0;  // beats of that rank; 0 when it was never heard from
  int64_t advances = 0;  // reports and completed messages of that rank; a standstill is an unchanged sum of these
  int64_t step = -1;
  uint64_t host = 0;  // HostIdentity() of its process; 0 when ranks are not processes
  int32_t pid = 0;
  int32_t blames = kBlamesNobody;
  RankState state = RankState::kIdle;
};

struct LivenessOptions {
  int rank = 0;
  int size = 1;
  // Half of this is the longest silence of a peer; all of it the longest standstill while nobody computes.
  std::chrono::milliseconds deadline{30000};
  // Whether a rank that has finished goes on beating until all have: then its silence is a stall like any other.
  bool finished_ranks_beat = false;
  uint64_t host = 0;
  int32_t pid = 0;
  // True when the rank can be seen to be dead, without waiting for silence. May be empty.
  std::function<bool(int rank, const RankRecord&)> is_gone = nullptr;
  std::function<std::chrono::steady_clock::time_point()> now = [] { return std::chrono::steady_clock::now(); };
};

class Liveness {
 public:
  explicit Liveness(LivenessOptions options);

  // Wait-free; for the thread that runs the plan.
  void Report(RankProgress progress);
  RankProgress progress() const;
  void NoteAdvance() { advances_.fetch_add(1, std::memory_order_relaxed); }
  // The verdict. Also fails when this rank's own Beat() has not been called for the deadline: the rank is then deaf.
  Status Health() const;

  // For the heartbeat.
  std::vector<RankRecord> Beat();
  int NextGossipPeer();  // -1 in a world of one
  void Merge(std::span<const RankRecord> table);
  void Fail(Status verdict);  // the heartbeat itself cannot go on

  std::chrono::milliseconds deadline() const { return options_.deadline; }
  std::chrono::milliseconds stall_after() const { return options_.deadline / 2; }
  int rank() const { return options_.rank; }

  // The unfinished peers whose death can be seen now, as "rank 2 (pid 123) is gone; it was last seen in plan step 17
  // (computing)", joined by commas; empty when there is none.
  std::string DescribeGonePeers() const;

 private:
  using TimePoint = std::chrono::steady_clock::time_point;

  // When this process was stopped or starved itself, what it missed meanwhile must not be held against its peers.
  void CatchUp(TimePoint now);
  void RefreshOwnRecord();
  bool IsGone(int rank) const;
  void Judge(TimePoint now);
  void Accuse(int rank, const std::string& reason);
  bool JudgeGoneOrFailed();
  bool JudgeSilence(TimePoint now);
  bool JudgeStandstill(TimePoint now);
  void DeclareStandstill(TimePoint now);
  void Conclude(Status verdict, int32_t blames);
  int peers() const { return options_.size - 1; }

  const LivenessOptions options_;

  std::atomic<RankState> state_{RankState::kIdle};
  std::atomic<int64_t> step_{-1};
  std::atomic<int64_t> advances_{0};
  std::atomic<int64_t> last_beat_ns_{0};  // since the clock's epoch; 0 before the first
  std::atomic<bool> has_verdict_{false};

  mutable std::mutex mutex_;
  std::vector<RankRecord> table_;
  std::vector<TimePoint> heard_at_;  // when the rank's sequence last rose here
  TimePoint advanced_at_;            // when any rank last advanced
  TimePoint active_at_;              // the last Beat() or Merge()
  Status verdict_;
  int gossip_round_ = 0;
};

// The rank that an error of Health() names, nullopt for errors with another cause or with no single culprit.
std::optional<int> BlamedRank(const Status& status);
// True for errors of Health(), which are consequences of what happened elsewhere.
bool IsPeerFailure(const Status& status);

}  // namespace tessera
