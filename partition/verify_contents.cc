// Stage 5 of Verify(): executes the plan with tokens and heads instead of numbers.
#include <algorithm>

#include "partition/verify_holding.h"
#include "partition/verify_internal.h"
#include "partition/verify_row_map.h"

namespace tessera::verify {
namespace {

Status Error(const Plan& plan, StepRef ref, const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat("contents: ", Where(plan, ref), " ", what));
}

bool HoldsKeyHeads(SlotContent content) {
  return content == SlotContent::kKey || content == SlotContent::kValue;
}

class Interpreter {
 public:
  Interpreter(const Plan& plan, const StepIndex& index, const Meetings& meetings)
      : plan_(plan), index_(index), meetings_(meetings) {
    for (const RankProgram& program : plan.programs) {
      for (const Slot& slot : program.slots) CutsOf(slot.content).Add(slot.heads);
      for (const Step& step : program.steps) AddCuts(program, step.body);
    }
    slots_.resize(plan.programs.size());
    for (const RankProgram& program : plan.programs) AddSlots(program);
  }

  StatusOr<Outcome> Run(std::span<const int> order) {
    for (const int meeting : order) {
      const StepRef ref = index_.at(meetings_.of(meeting).front());
      TESSERA_RETURN_IF_ERROR(std::visit([&](const auto& step) { return Compute(ref, step); }, BodyOf(plan_, ref)));
      for (const Transfer& transfer : TransfersOf(plan_, index_, meetings_, meeting)) {
        TESSERA_RETURN_IF_ERROR(Move(transfer));
      }
    }
    for (const RankProgram& program : plan_.programs) TESSERA_RETURN_IF_ERROR(Collect(program.rank));
    return std::move(outcome_);
  }

 private:
  using Rows = RowMap<Holding>;
  struct SlotState {
    std::vector<HeadRange> heads;  // of each block
    std::vector<Rows> blocks;
  };

  HeadCuts& CutsOf(SlotContent content) { return HoldsKeyHeads(content) ? key_cuts_ : query_cuts_; }
  const Slot& SlotOf(int rank, SlotId slot) const { return plan_.programs[rank].slots[slot]; }

  void AddCuts(const RankProgram& program, const StepBody& body) {
    if (const auto* attend = std::get_if<AttendStep>(&body)) {
      query_cuts_.Add(attend->heads);
      key_cuts_.Add(KeyHeadsOf(plan_.spec.problem, attend->heads));
    } else if (const auto* exchange = std::get_if<ExchangeStep>(&body)) {
      for (const auto* parts : {&exchange->sends, &exchange->receives}) {
        for (const ExchangePart& part : *parts) CutsOf(program.slots[part.region.slot].content).Add(part.region.heads);
      }
    }
  }
  void AddSlots(const RankProgram& program) {
    for (const Slot& slot : program.slots) {
      SlotState& state = slots_[program.rank].emplace_back();
      if (slot.content == SlotContent::kStaging) continue;
      state.heads = CutsOf(slot.content).Within(slot.heads);
      Rows rows(slot.rows);
      if (slot.external && slot.content <= SlotContent::kValue) {
        const bool keys = HoldsKeyHeads(slot.content);
        const Layout& layout = keys ? plan_.spec.key_layout : plan_.spec.query_layout;
        int64_t row = 0;
        for (const Segment& segment : layout.segments(program.rank)) {
          rows.Assign({row, row + segment.count}, {true, true, segment.begin, segment.stride});
          row += segment.count;
        }
      }
      state.blocks.assign(state.heads.size(), rows);
    }
  }

  // Calls visit(block's heads, its rows) for the blocks of `heads`; stops at an error.
  template <typename Visit>
  Status ForEachBlock(int rank, SlotId slot, HeadRange heads, Visit visit) {
    SlotState& state = slots_[rank][slot];
    for (size_t i = 0; i < state.heads.size(); ++i) {
      if (state.heads[i].begin < heads.begin || state.heads[i].end > heads.end) continue;
      TESSERA_RETURN_IF_ERROR(visit(state.heads[i], state.blocks[i]));
    }
    return absl::OkStatus();
  }
  Rows& BlockAt(int rank, SlotId slot, int head) {
    SlotState& state = slots_[rank][slot];
    size_t i = 0;
    while (state.heads[i].begin != head) ++i;
    return state.blocks[i];
  }

  Status Move(const Transfer& transfer) {
    const Region& from = transfer.source_region;
    const Region& to = transfer.destination_region;
    const Slot& source = SlotOf(transfer.source.rank, from.slot);
    const Slot& destination = SlotOf(transfer.destination.rank, to.slot);
    if (source.content != destination.content) {
      return Error(plan_, transfer.destination,
                   absl::StrCat("puts ", std::string(Name(source.content)), " rows of rank ", transfer.source.rank,
                                " into slot ", to.slot, ", which holds ", std::string(Name(destination.content))));
    }
    if (from.heads != to.heads || from.rows.size() != to.rows.size()) {
      return Error(plan_, transfer.destination,
                   absl::StrCat("puts ", from.rows.size(), " rows of heads ", Text(from.heads), " of rank ",
                                transfer.source.rank, " into ", to.rows.size(), " rows of heads ", Text(to.heads)));
    }
    const int64_t shift = to.rows.begin - from.rows.begin;
    return ForEachBlock(transfer.source.rank, from.slot, from.heads, [&](HeadRange heads, Rows& rows) {
      Rows& target = BlockAt(transfer.destination.rank, to.slot, heads.begin);
      std::vector<Rows::Run> runs;
      rows.ForEach(from.rows, [&](const Rows::Run& run) {
        runs.push_back(run);
        return true;
      });
      for (Rows::Run& run : runs) {
        if (!run.value.defined) {
          return Error(plan_, transfer.source,
                       absl::StrCat("moves rows ", Text(run.rows), " of slot ", from.slot, ", which hold nothing yet"));
        }
        const Range written{run.rows.begin + shift, run.rows.end + shift};
        if (destination.external) {
          TESSERA_RETURN_IF_ERROR(CheckFirstWrite(transfer.destination, to.slot, target, written));
        }
        target.Assign(written, run.value);
      }
      return absl::OkStatus();
    });
  }
  Status CheckFirstWrite(StepRef ref, SlotId slot, const Rows& rows, Range range) const {
    Range twice;
    const bool first = rows.ForEach(range, [&](const Rows::Run& run) {
      twice = run.rows;
      return !run.value.defined;
    });
    if (first) return absl::OkStatus();
    return Error(plan_, ref, absl::StrCat("writes rows ", Text(twice), " of result slot ", slot, " a second time"));
  }

  // The rows of the tile must hold the tokens it claims, in every head it uses.
  Status CheckTokens(StepRef ref, SlotId slot, HeadRange heads, int64_t first_row, const Segment& tokens) {
    const std::string content(Name(SlotOf(ref.rank, slot).content));
    return ForEachBlock(ref.rank, slot, heads, [&](HeadRange, Rows& rows) {
      Rows::Run wrong;
      const auto matches = [&](const Rows::Run& run) {
        wrong = run;
        return run.value.Matches(tokens.token(run.rows.begin - first_row), tokens.stride, run.rows.size());
      };
      if (rows.ForEach({first_row, first_row + tokens.count}, matches)) return absl::OkStatus();
      const std::string held =
          !wrong.value.defined ? "nothing"
                               : "tokens " + Text(Segment{wrong.value.token, wrong.rows.size(), wrong.value.stride});
      return Error(plan_, ref,
                   absl::StrCat("expects ", content, " tokens ", Text(TokensOfRows(tokens, first_row, wrong.rows)),
                                " in rows ", Text(wrong.rows), " of slot ", slot, ", which hold ", held));
    });
  }
  static Segment TokensOfRows(const Segment& tokens, int64_t first_row, Range rows) {
    return tessera::Rows(tokens, {rows.begin - first_row, rows.end - first_row});
  }

  // Adds `bag`, a contribution to `tokens` (or to nothing known yet), to a run of partial rows.
  Status Fold(StepRef ref, SlotId slot, Rows::Run& run, const Holding& added) {
    Holding& held = run.value;
    if (!held.defined) {
      return Error(plan_, ref,
                   absl::StrCat("adds to rows ", Text(run.rows), " of slot ", slot, ", which were never cleared"));
    }
    if (!added.has_tokens) return absl::OkStatus();
    if (!held.has_tokens) {
      held.has_tokens = true;
      held.token = added.token;
      held.stride = added.stride;
    } else if (!held.Matches(added.token, added.stride, run.rows.size())) {
      return Error(plan_, ref,
                   absl::StrCat("adds a part of query token ", added.token, " to row ", run.rows.begin, " of slot ",
                                slot, ", which belongs to token ", held.token));
    }
    held.bag = outcome_.contributions.Union(held.bag, added.bag);
    return absl::OkStatus();
  }

  // Sends, receives and exchanges compute nothing: their transfers are moved.
  template <typename Communication>
  Status Compute(StepRef, const Communication&) {
    return absl::OkStatus();
  }
  Status Compute(StepRef ref, const AttendStep& attend) {
    const HeadRange key_heads = KeyHeadsOf(plan_.spec.problem, attend.heads);
    for (const Tile& tile : attend.tiles) {
      TESSERA_RETURN_IF_ERROR(CheckTokens(ref, attend.query, attend.heads, tile.query_row, tile.queries));
      TESSERA_RETURN_IF_ERROR(CheckTokens(ref, attend.key, key_heads, tile.key_row, tile.keys));
      TESSERA_RETURN_IF_ERROR(CheckTokens(ref, attend.value, key_heads, tile.key_row, tile.keys));
      const int bag = outcome_.contributions.Add({tile.keys, ref});
      for (const SlotId slot : {attend.partial_output, attend.partial_lse}) {
        TESSERA_RETURN_IF_ERROR(ForEachBlock(ref.rank, slot, attend.heads, [&](HeadRange, Rows& rows) {
          Status status;
          rows.Update({tile.query_row, tile.query_row + tile.queries.count}, [&](Rows::Run& run) {
            const int64_t token = tile.queries.token(run.rows.begin - tile.query_row);
            status = Fold(ref, slot, run, {true, true, token, tile.queries.stride, bag});
            return status.ok();
          });
          return status;
        }));
      }
    }
    return absl::OkStatus();
  }
  Status Compute(StepRef ref, const ClearStep& clear) {
    for (const SlotId slot : {clear.partial_output, clear.partial_lse}) {
      TESSERA_RETURN_IF_ERROR(ForEachBlock(ref.rank, slot, SlotOf(ref.rank, slot).heads, [&](HeadRange, Rows& rows) {
        rows.Assign(clear.rows, {true});
        return absl::OkStatus();
      }));
    }
    return absl::OkStatus();
  }
  Status Compute(StepRef ref, const MergeStep& merge) {
    const std::pair<SlotId, SlotId> moves[] = {{merge.source_output, merge.output}, {merge.source_lse, merge.lse}};
    for (const auto& [source, destination] : moves) {
      TESSERA_RETURN_IF_ERROR(
          ForEachBlock(ref.rank, source, SlotOf(ref.rank, source).heads, [&](HeadRange heads, Rows& rows) {
            Rows& target = BlockAt(ref.rank, destination, heads.begin);
            Status status;
            for (const MergeRows& run : merge.rows) {
              rows.ForEach({run.source_row, run.source_row + run.count}, [&](const Rows::Run& part) {
                status = MergeRun(ref, source, destination, part, run.destination_row - run.source_row, target);
                return status.ok();
              });
              if (!status.ok()) break;
            }
            return status;
          }));
    }
    return absl::OkStatus();
  }
  Status MergeRun(StepRef ref, SlotId source, SlotId destination, const Rows::Run& part, int64_t shift, Rows& target) {
    if (!part.value.defined) {
      return Error(plan_, ref,
                   absl::StrCat("merges rows ", Text(part.rows), " of slot ", source, ", which hold nothing yet"));
    }
    Status status;
    target.Update({part.rows.begin + shift, part.rows.end + shift}, [&](Rows::Run& run) {
      Holding added = part.value;
      added.Advance(run.rows.begin - shift - part.rows.begin);
      status = Fold(ref, destination, run, added);
      return status.ok();
    });
    return status;
  }
  Status Compute(StepRef ref, const FinishStep& finish) {
    const std::pair<SlotId, SlotId> moves[] = {{finish.partial_output, finish.result},
                                               {finish.partial_lse, finish.result_lse}};
    for (const auto& [source, destination] : moves) {
      const Slot& slot = SlotOf(ref.rank, source);
      TESSERA_RETURN_IF_ERROR(ForEachBlock(ref.rank, source, slot.heads, [&](HeadRange heads, Rows& rows) {
        Rows& target = BlockAt(ref.rank, destination, heads.begin);
        for (const Rows::Run& run : rows.runs()) {
          if (!run.value.defined) {
            return Error(
                plan_, ref,
                absl::StrCat("finishes rows ", Text(run.rows), " of slot ", source, ", which hold nothing yet"));
          }
          if (destination < kExternalSlots) {
            TESSERA_RETURN_IF_ERROR(CheckFirstWrite(ref, destination, target, run.rows));
          }
          target.Assign(run.rows, run.value);
        }
        return absl::OkStatus();
      }));
    }
    return absl::OkStatus();
  }

  // What ended up in the caller's results, cut where the layout or the history changes.
  Status Collect(int rank) {
    return ForEachBlock(rank, kResultSlot, SlotOf(rank, kResultSlot).heads, [&](HeadRange heads, Rows& results) {
      const Rows& lses = BlockAt(rank, kResultLseSlot, heads.begin);
      int64_t row = 0;
      Status status;
      for (const Segment& segment : plan_.spec.query_layout.segments(rank)) {
        results.ForEach({row, row + segment.count}, [&](const Rows::Run& result) {
          return lses.ForEach(result.rows, [&](const Rows::Run& lse) {
            Holding output = result.value;
            output.Advance(lse.rows.begin - result.rows.begin);
            status = CollectRun(rank, heads, TokensOfRows(segment, row, lse.rows), output, lse.value);
            return status.ok();
          });
        });
        TESSERA_RETURN_IF_ERROR(status);
        row += segment.count;
      }
      return status;
    });
  }
  Status CollectRun(int rank, HeadRange heads, const Segment& queries, const Holding& output, const Holding& lse) {
    const std::string where =
        absl::StrCat("contents: rank ", rank, " query tokens ", Text(queries), " heads ", Text(heads), ": ");
    for (const auto& [held, name] : {std::pair(&output, "result"), std::pair(&lse, "result_lse")}) {
      if (!held->defined) return absl::InvalidArgumentError(absl::StrCat(where, name, " is never written"));
      if (held->has_tokens && !held->Matches(queries.begin, queries.stride, queries.count)) {
        return absl::InvalidArgumentError(absl::StrCat(where, name, " is that of token ", held->token));
      }
    }
    if (output.bag != lse.bag) {
      return absl::InvalidArgumentError(absl::StrCat(where, "result and result_lse are made of different parts"));
    }
    outcome_.rows.push_back({rank, heads, queries, output.bag});
    return absl::OkStatus();
  }

  const Plan& plan_;
  const StepIndex& index_;
  const Meetings& meetings_;
  HeadCuts query_cuts_;
  HeadCuts key_cuts_;
  std::vector<std::vector<SlotState>> slots_;  // [rank][slot]
  Outcome outcome_;
};

}  // namespace

StatusOr<Outcome> ExecuteSymbolically(const Plan& plan, const StepIndex& index, const Meetings& meetings,
                                      std::span<const int> order) {
  return Interpreter(plan, index, meetings).Run(order);
}

}  // namespace tessera::verify
