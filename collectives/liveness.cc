#include "collectives/liveness.h"

#include <algorithm>
#include <bit>
#include <numeric>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_join.h"

namespace tessera {
namespace {

constexpr char kPeerFailurePayload[] = "tessera/peer-failure";
constexpr size_t kRanksListed = 8;  // in messages about many ranks

using Milliseconds = std::chrono::duration<double, std::milli>;
std::string Seconds(Milliseconds duration) {
  return absl::StrFormat("%.1f s", duration.count() / 1000.0);
}

const char* Name(RankState state) {
  switch (state) {
    case RankState::kIdle:
      return "idle";
    case RankState::kWaiting:
      return "waiting";
    case RankState::kComputing:
      return "computing";
    case RankState::kFinished:
      return "finished";
    case RankState::kFailed:
      return "failed";
  }
  return "unknown";
}

std::string LastSeen(const RankRecord& record) {
  if (record.sequence == 0) return "it was never heard from";
  if (record.step < 0) return absl::StrCat("last seen before its first plan step (", Name(record.state), ")");
  return absl::StrCat("last seen in plan step ", record.step, " (", Name(record.state), ")");
}

std::string Doing(int rank, const RankRecord& record) {
  const char* verb = "is idle";
  if (record.state == RankState::kWaiting) verb = "waits";
  if (record.state == RankState::kComputing) verb = "computes";
  if (record.state == RankState::kFinished) verb = "has finished";
  if (record.state == RankState::kFailed) verb = "has failed";
  return record.step < 0 ? absl::StrCat("rank ", rank, " ", verb, " before its first plan step")
                         : absl::StrCat("rank ", rank, " ", verb, " in plan step ", record.step);
}

}  // namespace

Liveness::Liveness(LivenessOptions options)
    : options_(std::move(options)),
      table_(options_.size),
      heard_at_(options_.size, options_.now()),
      advanced_at_(options_.now()),
      active_at_(options_.now()) {
  table_[options_.rank].host = options_.host;
  table_[options_.rank].pid = options_.pid;
}

void Liveness::Report(RankProgress progress) {
  state_.store(progress.state, std::memory_order_relaxed);
  step_.store(progress.step, std::memory_order_relaxed);
  NoteAdvance();
}

RankProgress Liveness::progress() const {
  return {state_.load(std::memory_order_relaxed), step_.load(std::memory_order_relaxed)};
}

Status Liveness::Health() const {
  if (has_verdict_.load(std::memory_order_acquire)) {
    const std::lock_guard lock(mutex_);
    return verdict_;
  }
  const int64_t last_beat_ns = last_beat_ns_.load(std::memory_order_relaxed);
  const std::chrono::nanoseconds deaf_for = options_.now().time_since_epoch() - std::chrono::nanoseconds(last_beat_ns);
  if (last_beat_ns != 0 && deaf_for > options_.deadline) {
    return absl::UnavailableError(
        absl::StrCat("the heartbeat of rank ", rank(), " itself has stood still for ", Seconds(deaf_for)));
  }
  return absl::OkStatus();
}

void Liveness::RefreshOwnRecord() {
  RankRecord& own = table_[rank()];
  const int64_t advances = advances_.load(std::memory_order_relaxed);
  if (advances != own.advances) advanced_at_ = options_.now();
  own.advances = advances;
  own.state = state_.load(std::memory_order_relaxed);
  own.step = step_.load(std::memory_order_relaxed);
}

void Liveness::CatchUp(TimePoint now) {
  const TimePoint::duration absence = now - active_at_;
  active_at_ = now;
  if (absence <= stall_after() / 2) return;
  for (TimePoint& heard_at : heard_at_) heard_at += absence;
  advanced_at_ += absence;
}

std::vector<RankRecord> Liveness::Beat() {
  const std::lock_guard lock(mutex_);
  const TimePoint now = options_.now();
  CatchUp(now);
  ++table_[rank()].sequence;
  last_beat_ns_.store(std::chrono::nanoseconds(now.time_since_epoch()).count(), std::memory_order_relaxed);
  RefreshOwnRecord();
  Judge(now);
  return table_;
}

int Liveness::NextGossipPeer() {
  if (peers() == 0) return -1;
  const std::lock_guard lock(mutex_);
  const int rounds = std::bit_width(static_cast<unsigned>(peers()));
  return (rank() + (1 << (gossip_round_++ % rounds))) % options_.size;
}

void Liveness::Merge(std::span<const RankRecord> table) {
  const std::lock_guard lock(mutex_);
  const TimePoint now = options_.now();
  CatchUp(now);
  for (size_t r = 0; r < std::min(table.size(), table_.size()); ++r) {
    if (static_cast<int>(r) == rank() || table[r].sequence <= table_[r].sequence) continue;
    if (table[r].advances != table_[r].advances) advanced_at_ = now;
    table_[r] = table[r];
    heard_at_[r] = now;
  }
  RefreshOwnRecord();
  Judge(now);
}

bool Liveness::IsGone(int r) const {
  const RankRecord& record = table_[r];
  return r != rank() && record.state != RankState::kFinished && options_.is_gone && options_.is_gone(r, record);
}

void Liveness::Judge(TimePoint now) {
  // A rank that failed by itself is the cause; it must not blame the peers that fail because of it.
  if (has_verdict_.load(std::memory_order_relaxed) || table_[rank()].state == RankState::kFailed) return;
  // Causes before consequences: a rank that gave up on another, and then failed or left, must not be the one named.
  if (!JudgeGoneOrFailed() && !JudgeSilence(now)) JudgeStandstill(now);
}

bool Liveness::JudgeGoneOrFailed() {
  for (int r = 0; r < options_.size; ++r) {
    const int32_t culprit = table_[r].blames;
    if (r == rank() || culprit < 0 || culprit >= options_.size) continue;
    if (culprit == rank()) {
      Accuse(r, absl::StrCat("has given up on this rank (", culprit, ")"));
    } else {
      Accuse(culprit, table_[culprit].state == RankState::kFailed ? absl::StrCat("has failed, as rank ", r, " reports")
                                                                  : absl::StrCat("has been given up by rank ", r));
    }
    return true;
  }
  for (int r = 0; r < options_.size; ++r) {
    if (!IsGone(r)) continue;
    Accuse(r, table_[r].pid == 0 ? "is gone" : absl::StrCat("(pid ", table_[r].pid, ") is gone"));
    return true;
  }
  for (int r = 0; r < options_.size; ++r) {
    if (r == rank() || table_[r].state != RankState::kFailed) continue;
    if (table_[r].blames == kBlamesEverybody) continue;
    Accuse(r, "has failed");
    return true;
  }
  return false;
}

bool Liveness::JudgeSilence(TimePoint now) {
  int quietest = -1;
  for (int r = 0; r < options_.size; ++r) {
    const bool excused = table_[r].state == RankState::kFinished && !options_.finished_ranks_beat;
    if (r == rank() || excused || now - heard_at_[r] <= stall_after()) continue;
    if (quietest < 0 || heard_at_[r] < heard_at_[quietest]) quietest = r;
  }
  if (quietest < 0) return false;
  Accuse(quietest, absl::StrCat("has not been heard from for ", Seconds(now - heard_at_[quietest])));
  return true;
}

bool Liveness::JudgeStandstill(TimePoint now) {
  if (std::any_of(table_.begin(), table_.end(), [](const RankRecord& r) { return r.blames == kBlamesEverybody; })) {
    DeclareStandstill(now);
    return true;
  }
  if (table_[rank()].state != RankState::kWaiting) return false;
  const auto with_state = [&](RankState state) {
    return std::count_if(table_.begin(), table_.end(), [&](const RankRecord& r) { return r.state == state; });
  };
  // A finished peer may have left messages that are still on their way, hence the grace.
  if (peers() > 0 && with_state(RankState::kFinished) == peers() && now - advanced_at_ > options_.deadline / 8) {
    Conclude(absl::UnavailableError(absl::StrCat(Doing(rank(), table_[rank()]), ", but every other rank has finished")),
             kBlamesNobody);
    return true;
  }
  if (with_state(RankState::kComputing) > 0 || now - advanced_at_ <= options_.deadline) return false;
  DeclareStandstill(now);
  return true;
}

void Liveness::DeclareStandstill(TimePoint now) {
  std::vector<int> ranks(table_.size());
  std::iota(ranks.begin(), ranks.end(), 0);
  // The rank furthest behind is the likeliest cause.
  std::stable_sort(ranks.begin(), ranks.end(), [&](int a, int b) { return table_[a].step < table_[b].step; });
  std::string message = absl::StrCat("no rank has made progress for ", Seconds(now - advanced_at_), "; ");
  const size_t listed = std::min(ranks.size(), kRanksListed);
  absl::StrAppend(&message, absl::StrJoin(ranks.begin(), ranks.begin() + listed, ", ",
                                          [&](std::string* out, int r) { absl::StrAppend(out, Doing(r, table_[r])); }));
  if (listed < ranks.size()) absl::StrAppend(&message, ", and ", ranks.size() - listed, " more ranks");
  Conclude(absl::DeadlineExceededError(message), kBlamesEverybody);
}

void Liveness::Accuse(int r, const std::string& reason) {
  Conclude(absl::UnavailableError(absl::StrCat("rank ", r, " ", reason, "; ", LastSeen(table_[r]))), r);
}

void Liveness::Conclude(Status verdict, int32_t blames) {
  verdict.SetPayload(kPeerFailurePayload, absl::Cord(absl::StrCat(blames)));
  verdict_ = std::move(verdict);
  table_[rank()].blames = blames;
  has_verdict_.store(true, std::memory_order_release);
}

void Liveness::Fail(Status verdict) {
  const std::lock_guard lock(mutex_);
  if (!has_verdict_.load(std::memory_order_relaxed)) Conclude(std::move(verdict), kBlamesNobody);
}

std::string Liveness::DescribeGonePeers() const {
  const std::lock_guard lock(mutex_);
  std::string text;
  for (int r = 0; r < options_.size; ++r) {
    if (!IsGone(r)) continue;
    absl::StrAppend(&text, text.empty() ? "" : ", ", "rank ", r, " (pid ", table_[r].pid, ") is gone; it was ",
                    LastSeen(table_[r]));
  }
  return text;
}

bool IsPeerFailure(const Status& status) {
  return status.GetPayload(kPeerFailurePayload).has_value();
}

std::optional<int> BlamedRank(const Status& status) {
  const auto payload = status.GetPayload(kPeerFailurePayload);
  int blamed = -1;
  if (!payload || !absl::SimpleAtoi(std::string(*payload), &blamed) || blamed < 0) return std::nullopt;
  return blamed;
}

}  // namespace tessera
