// Stage 2 of Verify(): which steps of different ranks meet, and that they agree on what they move.
#include <algorithm>
#include <map>
#include <tuple>
#include <unordered_map>

#include "partition/verify_internal.h"

namespace tessera::verify {
namespace {

Status Error(const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat("messages: ", what));
}

// Numbers groups by their member lists, so that ranks may list them in any order.
class GroupNumbers {
 public:
  int Of(const std::vector<int>& members) {
    const auto [it, fresh] = numbers_.try_emplace(members, static_cast<int>(members_.size()));
    if (fresh) members_.push_back(&it->first);
    return it->second;
  }
  const std::vector<int>& members(int number) const { return *members_[number]; }

 private:
  std::map<std::vector<int>, int> numbers_;
  std::vector<const std::vector<int>*> members_;
};

struct Pair {
  int64_t send = kNone;
  int64_t receive = kNone;
};

// Sends and receives by (sender, receiver, tag).
StatusOr<std::vector<Pair>> PairMessages(const PlanView& plan, const StepIndex& index) {
  std::unordered_map<uint64_t, int> pair_of;
  std::vector<Pair> pairs;
  for (int64_t i = 0; i < index.size(); ++i) {
    const StepRef ref = index.at(i);
    const StepBody& body = BodyOf(plan, ref);
    const auto* send = std::get_if<SendStep>(&body);
    const auto* receive = std::get_if<ReceiveStep>(&body);
    if (send == nullptr && receive == nullptr) continue;
    const int tag = send != nullptr ? send->tag : receive->tag;
    const uint64_t sender = send != nullptr ? ref.rank : receive->peer;
    const uint64_t receiver = send != nullptr ? send->peer : ref.rank;
    // Tags stay below 2^20 and ranks below 2^22, as the structure stage made sure.
    const auto [it, fresh] = pair_of.try_emplace((sender << 42) | (receiver << 20) | static_cast<uint64_t>(tag),
                                                 static_cast<int>(pairs.size()));
    if (fresh) pairs.emplace_back();
    int64_t& end = send != nullptr ? pairs[it->second].send : pairs[it->second].receive;
    if (end != kNone) {
      return Error(absl::StrCat(Where(plan, ref), " repeats tag ", tag, " of ", Where(plan, index.at(end))));
    }
    end = i;
  }
  for (const Pair& pair : pairs) {
    if (pair.send == kNone || pair.receive == kNone) {
      const StepRef ref = index.at(pair.send == kNone ? pair.receive : pair.send);
      const StepBody& body = BodyOf(plan, ref);
      const auto* send = std::get_if<SendStep>(&body);
      const int peer = send != nullptr ? send->peer : std::get<ReceiveStep>(body).peer;
      const int tag = send != nullptr ? send->tag : std::get<ReceiveStep>(body).tag;
      return Error(absl::StrCat(Where(plan, ref), " with tag ", tag, " has no ", send != nullptr ? "receive" : "send",
                                " on rank ", peer));
    }
    const StepRef from = index.at(pair.send), to = index.at(pair.receive);
    const int64_t sent = BytesOf(plan.programs[from.rank], std::get<SendStep>(BodyOf(plan, from)).region);
    const int64_t received = BytesOf(plan.programs[to.rank], std::get<ReceiveStep>(BodyOf(plan, to)).region);
    if (sent != received) {
      return Error(
          absl::StrCat(Where(plan, from), " sends ", sent, " bytes but ", Where(plan, to), " expects ", received));
    }
  }
  return pairs;
}

// A non-empty part of an exchange.
struct Part {
  std::pair<int, int> ends;  // sender, receiver
  StepRef step;
  Region region;
  int64_t row_bytes = 0;
  int64_t bytes() const { return region.rows.size() * row_bytes; }
};
// All parts sent, or all received, by pair of ranks and in packing order within a pair.
std::vector<Part> PartsOf(const PlanView& plan, const StepIndex& index, std::span<const int64_t> participants,
                          bool sends) {
  std::vector<Part> parts;
  for (const int64_t participant : participants) {
    const StepRef ref = index.at(participant);
    const auto& exchange = std::get<ExchangeStep>(BodyOf(plan, ref));
    for (const ExchangePart& part : sends ? exchange.sends : exchange.receives) {
      const int64_t bytes = BytesOf(plan.programs[ref.rank], part.region);
      if (bytes == 0) continue;
      const std::pair<int, int> ends = sends ? std::pair(ref.rank, part.peer) : std::pair(part.peer, ref.rank);
      parts.push_back({ends, ref, part.region, bytes / part.region.rows.size()});
    }
  }
  std::stable_sort(parts.begin(), parts.end(), [](const Part& a, const Part& b) { return a.ends < b.ends; });
  return parts;
}

// What one rank sends another is a stream of rows, which the receiver may cut into parts differently. Lines up the two
// cuts, or says why that is impossible.
StatusOr<std::vector<Transfer>> LineUp(const PlanView& plan, std::vector<Part> sends, std::vector<Part> receives) {
  std::vector<Transfer> transfers;
  size_t i = 0, j = 0;
  while (i < sends.size() || j < receives.size()) {
    const bool unsent = i == sends.size() || (j < receives.size() && receives[j].ends < sends[i].ends);
    const bool unreceived = j == receives.size() || (i < sends.size() && sends[i].ends < receives[j].ends);
    if (unsent || unreceived) {
      const Part& part = unsent ? receives[j] : sends[i];
      return Error(absl::StrCat(Where(plan, part.step), " has ", part.bytes(), " bytes from rank ", part.ends.first,
                                " to rank ", part.ends.second, " that the other side lacks"));
    }
    Part& send = sends[i];
    Part& receive = receives[j];
    if (send.row_bytes != receive.row_bytes) {
      return Error(absl::StrCat(Where(plan, send.step), " sends rows of ", send.row_bytes, " bytes to rank ",
                                send.ends.second, " but ", Where(plan, receive.step), " expects ", receive.row_bytes));
    }
    const int64_t rows = std::min(send.region.rows.size(), receive.region.rows.size());
    const auto take = [rows](Part& part) {
      Region taken = part.region;
      taken.rows.end = part.region.rows.begin += rows;
      return taken;
    };
    const Region from = take(send), to = take(receive);
    transfers.push_back({send.step, from, receive.step, to});
    if (send.region.rows.empty()) ++i;
    if (receive.region.rows.empty()) ++j;
  }
  return transfers;
}
StatusOr<std::vector<Transfer>> ExchangeTransfers(const PlanView& plan, const StepIndex& index,
                                                  std::span<const int64_t> participants) {
  return LineUp(plan, PartsOf(plan, index, participants, true), PartsOf(plan, index, participants, false));
}

}  // namespace

StatusOr<Meetings> MatchMessages(const PlanView& plan, const StepIndex& index) {
  TESSERA_ASSIGN_OR_RETURN(const std::vector<Pair> pairs, PairMessages(plan, index));
  Meetings meetings;
  meetings.of_step.assign(index.size(), kNone);
  const auto close = [&](auto begin) {
    for (auto i = begin; i < static_cast<int64_t>(meetings.participants.size()); ++i) {
      meetings.of_step[meetings.participants[i]] = static_cast<int>(meetings.first.size()) - 1;
    }
    meetings.first.push_back(static_cast<int64_t>(meetings.participants.size()));
  };
  meetings.first.push_back(0);
  for (const Pair& pair : pairs) {
    meetings.participants.insert(meetings.participants.end(), {pair.send, pair.receive});
    close(meetings.first.back());
  }

  GroupNumbers groups;
  std::map<std::pair<int, int>, std::vector<int64_t>> exchanges;  // (group, how manyth on it) -> steps
  for (const RankProgram& program : plan.programs) {
    std::vector<std::pair<int, int>> next;  // of each of the rank's groups
    for (const std::vector<int>& members : program.groups) next.emplace_back(groups.Of(members), 0);
    for (StepId step = 0; step < static_cast<int>(program.steps.size()); ++step) {
      const StepBody& body = program.steps[step].body;
      const int64_t i = index.of(program.rank, step);
      if (const auto* exchange = std::get_if<ExchangeStep>(&body)) {
        exchanges[next[exchange->group]].push_back(i);
        ++next[exchange->group].second;
      } else if (IsCompute(body)) {
        meetings.participants.push_back(i);
        close(meetings.first.back());
      }
    }
  }
  for (const auto& [key, steps] : exchanges) {
    const std::vector<int>& members = groups.members(key.first);
    if (steps.size() != members.size()) {
      const auto absent = std::find_if(members.begin(), members.end(), [&](int member) {
        return std::none_of(steps.begin(), steps.end(), [&](int64_t i) { return index.at(i).rank == member; });
      });
      return Error(absl::StrCat(Where(plan, index.at(steps.front())), " is exchange ", key.second,
                                " of its group, which rank ", *absent, " does not enter"));
    }
    TESSERA_RETURN_IF_ERROR(ExchangeTransfers(plan, index, steps).status());
    meetings.participants.insert(meetings.participants.end(), steps.begin(), steps.end());
    close(meetings.first.back());
  }
  return meetings;
}

std::vector<Transfer> TransfersOf(const PlanView& plan, const StepIndex& index, const Meetings& meetings, int meeting) {
  const std::span<const int64_t> participants = meetings.of(meeting);
  const StepRef first = index.at(participants.front());
  if (const auto* send = std::get_if<SendStep>(&BodyOf(plan, first))) {
    const StepRef second = index.at(participants.back());
    return {{first, send->region, second, std::get<ReceiveStep>(BodyOf(plan, second)).region}};
  }
  if (!std::holds_alternative<ExchangeStep>(BodyOf(plan, first))) return {};
  return *ExchangeTransfers(plan, index, participants);
}

}  // namespace tessera::verify
