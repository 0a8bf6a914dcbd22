// Stage 4 of Verify(): no two steps of a rank touch the same rows of a slot at once unless both only read.
#include <algorithm>
#include <limits>

#include "partition/verify_internal.h"
#include "partition/verify_row_map.h"

namespace tessera::verify {
namespace {

// Answers "is a before b?" from the dependencies of one rank. A path either passes a compute step, which the two bounds
// below decide because compute steps order each other, or only communication, which a short search finds.
class HappensBefore {
 public:
  explicit HappensBefore(const RankProgram& program)
      : program_(program),
        compute_before_(program.steps.size(), kNone),
        compute_after_(program.steps.size(), kNever),
        seen_(program.steps.size(), kNone) {
    const int steps = static_cast<int>(program.steps.size());
    for (StepId step = 0; step < steps; ++step) {
      for (const StepId after : program.steps[step].after) {
        compute_before_[step] = std::max(compute_before_[step], compute_before_[after]);
      }
      if (IsCompute(program.steps[step].body)) compute_before_[step] = step;
    }
    for (StepId step = steps - 1; step >= 0; --step) {
      if (IsCompute(program.steps[step].body)) compute_after_[step] = step;
      for (const StepId after : program.steps[step].after) {
        compute_after_[after] = std::min(compute_after_[after], compute_after_[step]);
      }
    }
  }

  bool operator()(StepId a, StepId b) {
    if (a >= b) return false;
    if (compute_after_[a] <= compute_before_[b]) return true;
    ++query_;
    stack_.assign(1, b);
    while (!stack_.empty()) {
      const StepId step = stack_.back();
      stack_.pop_back();
      for (const StepId after : program_.steps[step].after) {
        if (after == a) return true;
        // The stamp names the query, so that nothing need be reset between queries.
        if (after > a && seen_[after] != query_) {
          seen_[after] = query_;
          stack_.push_back(after);
        }
      }
    }
    return false;
  }

 private:
  static constexpr StepId kNever = std::numeric_limits<StepId>::max();
  const RankProgram& program_;
  std::vector<StepId> compute_before_;  // last compute step that is the step itself or before it
  std::vector<StepId> compute_after_;   // first compute step that is the step itself or after it
  std::vector<int64_t> seen_;
  std::vector<StepId> stack_;
  int64_t query_ = 0;
};

struct Access {
  SlotId slot = kNone;
  Range rows;
  HeadRange heads;
  bool write = false;
};

std::vector<Range> Merged(std::vector<Range> rows) {
  std::vector<Range> merged;
  const IntervalSet united = UnionOf(std::move(rows));
  merged.assign(united.ranges().begin(), united.ranges().end());
  return merged;
}

// The rows that tiles, or runs of rows, touch in slots of either side.
struct TileRows {
  explicit TileRows(const std::vector<Tile>& tiles) {
    for (const Tile& tile : tiles) {
      queries.push_back({tile.query_row, tile.query_row + tile.queries.count});
      keys.push_back({tile.key_row, tile.key_row + tile.keys.count});
    }
    queries = Merged(std::move(queries));
    keys = Merged(std::move(keys));
  }
  std::vector<Range> queries, keys;
};
struct RunRows {
  explicit RunRows(const std::vector<MergeRows>& rows) {
    for (const MergeRows& run : rows) {
      sources.push_back({run.source_row, run.source_row + run.count});
      destinations.push_back({run.destination_row, run.destination_row + run.count});
    }
    sources = Merged(std::move(sources));
    destinations = Merged(std::move(destinations));
  }
  std::vector<Range> sources, destinations;
};

// Everything a step reads and writes, reads first; rows of one slot are listed once unless the step itself conflicts.
class AccessList {
 public:
  AccessList(const PlanView& plan, const RankProgram& program)
      : problem_(plan.problem), inputs_(plan.inputs), program_(program) {}

  const std::vector<Access>& Of(const StepBody& body) {
    list_.clear();
    std::visit([this](const auto& step) { Append(step); }, body);
    return list_;
  }

 private:
  void Append(const SendStep& send) { Touch(send.region, false); }
  void Append(const ReceiveStep& receive) { Touch(receive.region, true); }
  void Append(const ExchangeStep& exchange) {
    for (const ExchangePart& part : exchange.sends) Touch(part.region, false);
    for (const ExchangePart& part : exchange.receives) Touch(part.region, true);
    for (const SlotId staging : {exchange.send_staging, exchange.receive_staging}) {
      if (staging != kNone) TouchRows(staging, {{0, program_.slots[staging].rows}}, true);
    }
  }
  void Append(const AttendStep& attend) {
    const TileRows rows(attend.tiles);
    const HeadRange key_heads = KeyHeadsOf(problem_, attend.heads);
    TouchRows(attend.query, rows.queries, false, attend.heads);
    for (const SlotId slot : {attend.key, attend.value}) TouchRows(slot, rows.keys, false, key_heads);
    for (const SlotId slot : {attend.partial_output, attend.partial_lse}) {
      TouchRows(slot, rows.queries, true, attend.heads);
    }
  }
  void Append(const ClearStep& clear) {
    TouchRows(clear.partial_output, {clear.rows}, true);
    TouchRows(clear.partial_lse, {clear.rows}, true);
  }
  void Append(const MergeStep& merge) {
    const RunRows rows(merge.rows);
    TouchRows(merge.source_output, rows.sources, false);
    TouchRows(merge.source_lse, rows.sources, false);
    TouchRows(merge.output, rows.destinations, true);
    TouchRows(merge.lse, rows.destinations, true);
  }
  void Append(const FinishStep& finish) {
    const std::vector<Range> rows{{0, program_.slots[finish.partial_output].rows}};
    TouchRows(finish.partial_output, rows, false);
    TouchRows(finish.partial_lse, rows, false);
    TouchRows(finish.result, rows, true);
    TouchRows(finish.result_lse, rows, true);
  }

  void Append(const DeltaStep& delta) {
    const std::vector<Range> rows{{0, program_.slots[delta.delta].rows}};
    TouchRows(delta.output, rows, false);
    TouchRows(delta.output_gradient, rows, false);
    TouchRows(delta.delta, rows, true);
  }
  void Append(const AttendBackwardStep& attend) {
    const TileRows rows(attend.tiles);
    const HeadRange key_heads = KeyHeadsOf(problem_, attend.heads);
    for (const SlotId slot : {attend.query, attend.output_gradient, attend.lse, attend.delta}) {
      TouchRows(slot, rows.queries, false, attend.heads);
    }
    for (const SlotId slot : {attend.key, attend.value}) TouchRows(slot, rows.keys, false, key_heads);
    TouchRows(attend.query_gradient, rows.queries, true, attend.heads);
    for (const SlotId slot : {attend.key_gradient, attend.value_gradient}) {
      TouchRows(slot, rows.keys, true, key_heads);
    }
  }
  void Append(const ZeroStep& zero) { TouchRows(zero.slot, {zero.rows}, true); }
  void Append(const AddStep& add) {
    const RunRows rows(add.rows);
    TouchRows(add.source, rows.sources, false);
    TouchRows(add.destination, rows.destinations, true, program_.slots[add.source].heads);
  }
  void Append(const RoundStep& round) {
    const std::vector<Range> rows{{0, program_.slots[round.source].rows}};
    TouchRows(round.source, rows, false);
    TouchRows(round.destination, rows, true);
  }
  void Append(const AttendCacheStep& attend) {
    const std::vector<Range> rows{{0, program_.slots[attend.query].rows}};
    TouchRows(attend.query, rows, false);
    TouchRows(attend.partial_output, rows, true);
    TouchRows(attend.partial_lse, rows, true);
  }

  void TouchRows(SlotId slot, const std::vector<Range>& rows, bool write) {
    TouchRows(slot, rows, write, program_.slots[slot].heads);
  }
  void TouchRows(SlotId slot, const std::vector<Range>& rows, bool write, HeadRange heads) {
    for (const Range run : rows) Touch({slot, run, heads}, write);
  }
  void Touch(const Region& region, bool write) {
    // Nothing writes the caller's inputs, so reads of them cannot conflict.
    if (region.slot < inputs_ || region.rows.empty()) return;
    list_.push_back({region.slot, region.rows, region.heads, write});
  }

  const Problem& problem_;
  SlotId inputs_;
  const RankProgram& program_;
  std::vector<Access> list_;
};

// Who last touched a row: its last writer and the readers since. One compute reader stands for all earlier ones.
struct LastTouch {
  StepId writer = kNone;
  StepId compute_reader = kNone;
  std::vector<StepId> readers;
  void Advance(int64_t) {}
};

class RankChecker {
 public:
  RankChecker(const PlanView& plan, const RankProgram& program)
      : program_(program), accesses_(plan, program), before_(program), slots_(program.slots.size()) {
    for (const Step& step : program.steps) {
      for (const Access& access : accesses_.Of(step.body)) {
        for (const int cut : {access.heads.begin, access.heads.end}) slots_[access.slot].cuts.push_back(cut);
      }
    }
    for (size_t id = 0; id < slots_.size(); ++id) {
      std::vector<int>& cuts = slots_[id].cuts;
      std::sort(cuts.begin(), cuts.end());
      cuts.erase(std::unique(cuts.begin(), cuts.end()), cuts.end());
      if (!cuts.empty()) slots_[id].blocks.assign(cuts.size() - 1, RowMap<LastTouch>(program.slots[id].rows));
    }
  }

  Status Check() {
    for (StepId step = 0; step < static_cast<int>(program_.steps.size()); ++step) {
      for (const Access& access : accesses_.Of(program_.steps[step].body)) {
        TESSERA_RETURN_IF_ERROR(CheckAccess(step, access));
      }
    }
    return absl::OkStatus();
  }

 private:
  struct SlotHistory {
    std::vector<int> cuts;                  // heads where some access begins or ends
    std::vector<RowMap<LastTouch>> blocks;  // one per run of heads between cuts
  };

  Status CheckAccess(StepId step, const Access& access) {
    SlotHistory& history = slots_[access.slot];
    const bool compute = IsCompute(program_.steps[step].body);
    for (size_t block = 0; block < history.blocks.size(); ++block) {
      if (history.cuts[block] < access.heads.begin || history.cuts[block] >= access.heads.end) continue;
      StepId conflict = kNone;
      Range rows;
      const auto ordered = [&](StepId earlier) {
        if (earlier == kNone || before_(earlier, step)) return true;
        conflict = earlier;
        return false;
      };
      const bool fine = history.blocks[block].Update(access.rows, [&](auto& run) {
        rows = run.rows;
        LastTouch& last = run.value;
        if (!ordered(last.writer)) return false;
        if (!access.write) {
          if (compute) {
            last.compute_reader = step;
          } else {
            last.readers.push_back(step);
          }
          return true;
        }
        return ordered(last.compute_reader) && std::all_of(last.readers.begin(), last.readers.end(), ordered);
      });
      if (!fine) {
        const char* what = access.write ? " overwrites rows " : " reads rows ";
        const std::string slot = absl::StrCat(" of slot ", access.slot);
        if (conflict == step) {
          return absl::InvalidArgumentError(
              absl::StrCat("lifetimes: ", Where(program_, step), what, Text(rows), slot, " that the same step uses"));
        }
        return absl::InvalidArgumentError(absl::StrCat("lifetimes: ", Where(program_, step), what, Text(rows), slot,
                                                       " without waiting for ", Where(program_, conflict)));
      }
      if (access.write) history.blocks[block].Assign(access.rows, {step, kNone, {}});
    }
    return absl::OkStatus();
  }

  const RankProgram& program_;
  AccessList accesses_;
  HappensBefore before_;
  std::vector<SlotHistory> slots_;
};

}  // namespace

Status CheckLifetimes(const PlanView& plan) {
  for (const RankProgram& program : plan.programs) {
    TESSERA_RETURN_IF_ERROR(RankChecker(plan, program).Check());
  }
  return absl::OkStatus();
}

}  // namespace tessera::verify
