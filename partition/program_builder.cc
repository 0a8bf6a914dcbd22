#include "partition/program_builder.h"

#include <algorithm>

namespace tessera {
namespace {

template <typename... Ts>
struct Overloaded : Ts... {
  using Ts::operator()...;
};

Range HullOfQueries(const std::vector<Tile>& tiles) {
  Range hull{INT64_MAX, 0};
  for (const Tile& t : tiles)
    hull = {std::min(hull.begin, t.query_row), std::max(hull.end, t.query_row + t.queries.count)};
  return hull;
}
Range HullOfKeys(const std::vector<Tile>& tiles) {
  Range hull{INT64_MAX, 0};
  for (const Tile& t : tiles) hull = {std::min(hull.begin, t.key_row), std::max(hull.end, t.key_row + t.keys.count)};
  return hull;
}

// Tags lie in [0, 2^20), half for each channel. Messages of a pair and tag arrive in order, so tags may repeat.
constexpr int kTagsPerChannel = 1 << 19;

int Tag(Channel channel, int message) {
  return static_cast<int>(channel) * kTagsPerChannel + message % kTagsPerChannel;
}

}  // namespace

SlotId ProgramBuilder::AddSlot(const Slot& slot) {
  program_.slots.push_back(slot);
  accesses_.emplace_back();
  return static_cast<SlotId>(program_.slots.size()) - 1;
}

int ProgramBuilder::AddGroup(std::vector<int> world_ranks) {
  program_.groups.push_back(std::move(world_ranks));
  return static_cast<int>(program_.groups.size()) - 1;
}

void ProgramBuilder::Touch(SlotId slot, Range rows, bool write, std::vector<StepId>& after) {
  if (slot == kNone || rows.empty()) return;
  std::vector<Access>& earlier = accesses_[slot];
  const StepId self = static_cast<StepId>(program_.steps.size());
  for (const Access& access : earlier) {
    if (access.step != self && (write || access.write) && !Intersect(access.rows, rows).empty()) {
      after.push_back(access.step);
    }
  }
  if (write) {
    // What this write covers entirely is reached through it from now on.
    std::erase_if(earlier, [&](const Access& a) {
      return a.step != self && a.rows.begin >= rows.begin && a.rows.end <= rows.end;
    });
  }
  // An external slot that nothing has written is an input: its reads need no record.
  if (write || !program_.slots[slot].external || !earlier.empty()) earlier.push_back({self, rows, write});
}

StepId ProgramBuilder::Send(int peer, const Region& region, Channel channel) {
  return Add(SendStep{peer, Tag(channel, sent_[{peer, channel}]++), region});
}

StepId ProgramBuilder::Receive(int peer, const Region& region, Channel channel) {
  return Add(ReceiveStep{peer, Tag(channel, received_[{peer, channel}]++), region});
}

StepId ProgramBuilder::Add(StepBody body) {
  std::vector<StepId> after;
  const auto all_rows = [&](SlotId id) { return id == kNone ? Range{} : Range{0, program_.slots[id].rows}; };
  std::visit(Overloaded{
                 [&](const SendStep& s) { Touch(s.region, false, after); },
                 [&](const ReceiveStep& s) { Touch(s.region, true, after); },
                 [&](const ExchangeStep& s) {
                   for (const ExchangePart& part : s.sends) Touch(part.region, false, after);
                   for (const ExchangePart& part : s.receives) Touch(part.region, true, after);
                   Touch(s.send_staging, all_rows(s.send_staging), true, after);
                   Touch(s.receive_staging, all_rows(s.receive_staging), true, after);
                 },
                 [&](const AttendStep& s) {
                   const Range queries = HullOfQueries(s.tiles);
                   const Range keys = HullOfKeys(s.tiles);
                   Touch(s.query, queries, false, after);
                   Touch(s.key, keys, false, after);
                   Touch(s.value, keys, false, after);
                   Touch(s.partial_output, queries, true, after);
                   Touch(s.partial_lse, queries, true, after);
                 },
                 [&](const ClearStep& s) {
                   Touch(s.partial_output, s.rows, true, after);
                   Touch(s.partial_lse, s.rows, true, after);
                 },
                 [&](const MergeStep& s) {
                   for (const MergeRows& r : s.rows) {
                     for (SlotId source : {s.source_output, s.source_lse}) {
                       Touch(source, {r.source_row, r.source_row + r.count}, false, after);
                     }
                     for (SlotId destination : {s.output, s.lse}) {
                       Touch(destination, {r.destination_row, r.destination_row + r.count}, true, after);
                     }
                   }
                 },
                 [&](const FinishStep& s) {
                   Touch(s.partial_output, all_rows(s.partial_output), false, after);
                   Touch(s.partial_lse, all_rows(s.partial_lse), false, after);
                   Touch(s.result, all_rows(s.result), true, after);
                   Touch(s.result_lse, all_rows(s.result_lse), true, after);
                 },
                 [&](const DeltaStep& s) {
                   Touch(s.output, all_rows(s.output), false, after);
                   Touch(s.output_gradient, all_rows(s.output_gradient), false, after);
                   Touch(s.delta, all_rows(s.delta), true, after);
                 },
                 [&](const AttendBackwardStep& s) {
                   const Range queries = HullOfQueries(s.tiles);
                   const Range keys = HullOfKeys(s.tiles);
                   for (SlotId slot : {s.query, s.output_gradient, s.lse, s.delta}) Touch(slot, queries, false, after);
                   for (SlotId slot : {s.key, s.value}) Touch(slot, keys, false, after);
                   Touch(s.query_gradient, queries, true, after);
                   for (SlotId slot : {s.key_gradient, s.value_gradient}) Touch(slot, keys, true, after);
                 },
                 [&](const ZeroStep& s) { Touch(s.slot, s.rows, true, after); },
                 [&](const AddStep& s) {
                   for (const MergeRows& r : s.rows) {
                     Touch(s.source, {r.source_row, r.source_row + r.count}, false, after);
                     Touch(s.destination, {r.destination_row, r.destination_row + r.count}, true, after);
                   }
                 },
                 [&](const RoundStep& s) {
                   Touch(s.source, all_rows(s.source), false, after);
                   Touch(s.destination, all_rows(s.destination), true, after);
                 },
                 [&](const AttendCacheStep& s) {
                   Touch(s.query, all_rows(s.query), false, after);
                   Touch(s.partial_output, all_rows(s.partial_output), true, after);
                   Touch(s.partial_lse, all_rows(s.partial_lse), true, after);
                 },
             },
             body);
  std::sort(after.begin(), after.end());
  after.erase(std::unique(after.begin(), after.end()), after.end());
  program_.steps.push_back({std::move(body), std::move(after)});
  return static_cast<StepId>(program_.steps.size()) - 1;
}

}  // namespace tessera
