// The slots of all ranks during the symbolic execution of Verify(). Private to Verify().
#pragma once

#include <vector>

#include "partition/verify_holding.h"
#include "partition/verify_internal.h"
#include "partition/verify_row_map.h"

namespace tessera::verify {

class SlotStates {
 public:
  using Rows = RowMap<Holding>;

  explicit SlotStates(const PlanView& plan) : plan_(plan) {
    for (const RankProgram& program : plan.programs) {
      for (const Slot& slot : program.slots) CutsOf(slot.content).Add(slot.heads);
      for (const Step& step : program.steps) AddCuts(program, step.body);
    }
    slots_.resize(plan.programs.size());
    for (const RankProgram& program : plan.programs) AddSlots(program);
  }

  const Slot& SlotOf(int rank, SlotId slot) const { return plan_.programs[rank].slots[slot]; }
  // Runs of key/value heads within `heads` that share their history; the same for every slot that has them.
  std::vector<HeadRange> KeyBlocks(HeadRange heads) const { return key_cuts_.Within(heads); }

  // Calls visit(block's heads, its rows) for the blocks of `heads`; stops at an error.
  template <typename Visit>
  Status ForEachBlock(int rank, SlotId slot, HeadRange heads, Visit visit) {
    State& state = slots_[rank][slot];
    for (size_t i = 0; i < state.heads.size(); ++i) {
      if (state.heads[i].begin < heads.begin || state.heads[i].end > heads.end) continue;
      TESSERA_RETURN_IF_ERROR(visit(state.heads[i], state.blocks[i]));
    }
    return absl::OkStatus();
  }
  template <typename Visit>
  Status ForEachBlock(int rank, SlotId slot, Visit visit) {
    return ForEachBlock(rank, slot, SlotOf(rank, slot).heads, visit);
  }
  Rows& BlockAt(int rank, SlotId slot, int head) {
    State& state = slots_[rank][slot];
    size_t i = 0;
    while (state.heads[i].begin != head) ++i;
    return state.blocks[i];
  }

 private:
  struct State {
    std::vector<HeadRange> heads;  // of each block
    std::vector<Rows> blocks;
  };

  HeadCuts& CutsOf(SlotContent content) { return IsOnKeySide(content) ? key_cuts_ : query_cuts_; }

  void AddCuts(const RankProgram& program, const StepBody& body) {
    const Problem& problem = plan_.problem;
    if (const auto* attend = std::get_if<AttendStep>(&body)) {
      query_cuts_.Add(attend->heads);
      key_cuts_.Add(KeyHeadsOf(problem, attend->heads));
    } else if (const auto* backward = std::get_if<AttendBackwardStep>(&body)) {
      // A key head of which only some query heads are here is a block of its own.
      const HeadRange heads = backward->heads, keys = KeyHeadsOf(problem, heads);
      query_cuts_.Add(heads);
      key_cuts_.Add(keys);
      if (heads.begin % problem.group() != 0) key_cuts_.Add({keys.begin, keys.begin + 1});
      if (heads.end % problem.group() != 0) key_cuts_.Add({keys.end - 1, keys.end});
    } else if (const auto* cache = std::get_if<AttendCacheStep>(&body)) {
      query_cuts_.Add(cache->heads);
    } else if (const auto* exchange = std::get_if<ExchangeStep>(&body)) {
      for (const auto* parts : {&exchange->sends, &exchange->receives}) {
        for (const ExchangePart& part : *parts) CutsOf(program.slots[part.region.slot].content).Add(part.region.heads);
      }
    }
  }
  void AddSlots(const RankProgram& program) {
    for (SlotId id = 0; id < static_cast<int>(program.slots.size()); ++id) {
      const Slot& slot = program.slots[id];
      State& state = slots_[program.rank].emplace_back();
      if (slot.content == SlotContent::kStaging) continue;
      state.heads = CutsOf(slot.content).Within(slot.heads);
      Rows rows(slot.rows);
      if (id < plan_.inputs) {
        int64_t row = 0;
        for (const Segment& segment : plan_.external(program.rank, id).tokens) {
          rows.Assign({row, row + segment.count}, {true, true, segment.begin, segment.stride});
          row += segment.count;
        }
      }
      state.blocks.assign(state.heads.size(), rows);
    }
  }

  const PlanView& plan_;
  HeadCuts query_cuts_;
  HeadCuts key_cuts_;
  std::vector<std::vector<State>> slots_;  // [rank][slot]
};

}  // namespace tessera::verify
