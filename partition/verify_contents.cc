// Stage 5 of Verify(): executes the plan with tokens and heads instead of numbers.
#include <algorithm>

#include "partition/verify_collect.h"
#include "partition/verify_internal.h"
#include "partition/verify_slot_states.h"

namespace tessera::verify {
namespace {

Status Error(const PlanView& plan, StepRef ref, const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat("contents: ", Where(plan, ref), " ", what));
}

class Interpreter {
 public:
  Interpreter(const PlanView& plan, const StepIndex& index, const Meetings& meetings)
      : plan_(plan), index_(index), meetings_(meetings), slots_(plan) {}

  StatusOr<Outcome> Run(std::span<const int> order) {
    for (const int meeting : order) {
      const StepRef ref = index_.at(meetings_.of(meeting).front());
      TESSERA_RETURN_IF_ERROR(std::visit([&](const auto& step) { return Compute(ref, step); }, BodyOf(plan_, ref)));
      for (const Transfer& transfer : TransfersOf(plan_, index_, meetings_, meeting)) {
        TESSERA_RETURN_IF_ERROR(Move(transfer));
      }
    }
    TESSERA_ASSIGN_OR_RETURN(outcome_.rows, Collector(plan_, slots_).Collect());
    return std::move(outcome_);
  }

 private:
  using Rows = SlotStates::Rows;

  const Slot& SlotOf(int rank, SlotId slot) const { return slots_.SlotOf(rank, slot); }

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
    return slots_.ForEachBlock(transfer.source.rank, from.slot, from.heads, [&](HeadRange heads, Rows& rows) {
      Rows& target = slots_.BlockAt(transfer.destination.rank, to.slot, heads.begin);
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
        if (destination.external && destination.content != SlotContent::kPartialOutput &&
            destination.content != SlotContent::kPartialLse) {
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
    return slots_.ForEachBlock(ref.rank, slot, heads, [&](HeadRange, Rows& rows) {
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
  // Adds the parts of `added` (contributions to its tokens, or to nothing known yet) to a run of partial rows.
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
      return Error(
          plan_, ref,
          absl::StrCat("adds a part of ", SideName(SlotOf(ref.rank, slot).content), " token ", added.token, " to row ",
                       run.rows.begin, " of slot ", slot, ", which belongs to token ", held.token));
    }
    held.bag = outcome_.contributions.Union(held.bag, added.bag);
    return absl::OkStatus();
  }
  // Adds one contribution to the rows of `tokens`, in every block of `heads`.
  Status FoldTile(StepRef ref, SlotId slot, HeadRange heads, int64_t first_row, const Segment& tokens, int bag) {
    return slots_.ForEachBlock(ref.rank, slot, heads, [&](HeadRange, Rows& rows) {
      Status status;
      rows.Update({first_row, first_row + tokens.count}, [&](Rows::Run& run) {
        status = Fold(ref, slot, run, {true, true, tokens.token(run.rows.begin - first_row), tokens.stride, bag});
        return status.ok();
      });
      return status;
    });
  }

  // Sends, receives and exchanges compute nothing: their transfers are moved.
  template <typename Communication>
  Status Compute(StepRef, const Communication&) {
    return absl::OkStatus();
  }
  Status Compute(StepRef ref, const AttendStep& attend) {
    const HeadRange key_heads = KeyHeadsOf(plan_.problem, attend.heads);
    for (const Tile& tile : attend.tiles) {
      TESSERA_RETURN_IF_ERROR(CheckTokens(ref, attend.query, attend.heads, tile.query_row, tile.queries));
      TESSERA_RETURN_IF_ERROR(CheckTokens(ref, attend.key, key_heads, tile.key_row, tile.keys));
      TESSERA_RETURN_IF_ERROR(CheckTokens(ref, attend.value, key_heads, tile.key_row, tile.keys));
      const int bag = outcome_.contributions.Add({tile.keys, ref, attend.heads});
      for (const SlotId slot : {attend.partial_output, attend.partial_lse}) {
        TESSERA_RETURN_IF_ERROR(FoldTile(ref, slot, attend.heads, tile.query_row, tile.queries, bag));
      }
    }
    return absl::OkStatus();
  }
  Status Compute(StepRef ref, const AttendBackwardStep& attend) {
    const Problem& problem = plan_.problem;
    const HeadRange key_heads = KeyHeadsOf(problem, attend.heads);
    Contributions& contributions = outcome_.contributions;
    for (const Tile& tile : attend.tiles) {
      for (const SlotId slot : {attend.query, attend.output_gradient, attend.lse, attend.delta}) {
        TESSERA_RETURN_IF_ERROR(CheckTokens(ref, slot, attend.heads, tile.query_row, tile.queries));
      }
      for (const SlotId slot : {attend.key, attend.value}) {
        TESSERA_RETURN_IF_ERROR(CheckTokens(ref, slot, key_heads, tile.key_row, tile.keys));
      }
      const int keys = contributions.Add({tile.keys, ref, attend.heads});
      TESSERA_RETURN_IF_ERROR(FoldTile(ref, attend.query_gradient, attend.heads, tile.query_row, tile.queries, keys));
      for (const HeadRange block : slots_.KeyBlocks(key_heads)) {
        const int group = problem.group();
        const HeadRange heads{std::max(attend.heads.begin, block.begin * group),
                              std::min(attend.heads.end, block.end * group)};
        const int queries = contributions.Add({tile.queries, ref, heads});
        for (const SlotId slot : {attend.key_gradient, attend.value_gradient}) {
          TESSERA_RETURN_IF_ERROR(FoldTile(ref, slot, block, tile.key_row, tile.keys, queries));
        }
      }
    }
    return absl::OkStatus();
  }
  // Row i of the slots is row i of the step; what it meets is this rank's part of the cache.
  Status Compute(StepRef ref, const AttendCacheStep& attend) {
    const Segment rows{0, SlotOf(ref.rank, attend.query).rows, 1};
    TESSERA_RETURN_IF_ERROR(CheckTokens(ref, attend.query, attend.heads, 0, rows));
    const int bag = outcome_.contributions.Add({{CachePartOf(plan_, ref.rank), 1, 1}, ref, attend.heads});
    for (const SlotId slot : {attend.partial_output, attend.partial_lse}) {
      TESSERA_RETURN_IF_ERROR(slots_.ForEachBlock(ref.rank, slot, attend.heads, [&](HeadRange, Rows& target) {
        target.Assign({0, rows.count}, {true, true, 0, 1, bag});
        return absl::OkStatus();
      }));
    }
    return absl::OkStatus();
  }
  // Rows of output and output gradient must be those of the same tokens, which the deltas then are of too.
  Status Compute(StepRef ref, const DeltaStep& delta) {
    return slots_.ForEachBlock(ref.rank, delta.output, [&](HeadRange heads, Rows& outputs) {
      const Rows& gradients = slots_.BlockAt(ref.rank, delta.output_gradient, heads.begin);
      Rows& deltas = slots_.BlockAt(ref.rank, delta.delta, heads.begin);
      for (const Rows::Run& output : outputs.runs()) {
        const bool fine = gradients.ForEach(output.rows, [&](const Rows::Run& gradient) {
          Holding held = output.value;
          held.Advance(gradient.rows.begin - output.rows.begin);
          if (!gradient.value.Matches(held.token, held.stride, gradient.rows.size())) return false;
          deltas.Assign(gradient.rows, held);
          return held.has_tokens;
        });
        if (fine) continue;
        return Error(plan_, ref,
                     absl::StrCat("multiplies rows ", Text(output.rows), " of slots ", delta.output, " and ",
                                  delta.output_gradient, ", which hold different tokens"));
      }
      return absl::OkStatus();
    });
  }
  Status Compute(StepRef ref, const ClearStep& clear) {
    TESSERA_RETURN_IF_ERROR(Clear(ref, clear.partial_output, clear.rows));
    return Clear(ref, clear.partial_lse, clear.rows);
  }
  Status Compute(StepRef ref, const ZeroStep& zero) { return Clear(ref, zero.slot, zero.rows); }
  Status Clear(StepRef ref, SlotId slot, Range range) {
    return slots_.ForEachBlock(ref.rank, slot, [&](HeadRange, Rows& rows) {
      rows.Assign(range, {true});
      return absl::OkStatus();
    });
  }
  Status Compute(StepRef ref, const MergeStep& merge) {
    TESSERA_RETURN_IF_ERROR(Merge(ref, merge.source_output, merge.output, merge.rows));
    return Merge(ref, merge.source_lse, merge.lse, merge.rows);
  }
  Status Compute(StepRef ref, const AddStep& add) { return Merge(ref, add.source, add.destination, add.rows); }
  Status Merge(StepRef ref, SlotId source, SlotId destination, const std::vector<MergeRows>& runs) {
    return slots_.ForEachBlock(ref.rank, source, [&](HeadRange heads, Rows& rows) {
      Rows& target = slots_.BlockAt(ref.rank, destination, heads.begin);
      Status status;
      for (const MergeRows& run : runs) {
        rows.ForEach({run.source_row, run.source_row + run.count}, [&](const Rows::Run& part) {
          status = MergeRun(ref, source, destination, part, run.destination_row - run.source_row, target);
          return status.ok();
        });
        if (!status.ok()) break;
      }
      return status;
    });
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
    TESSERA_RETURN_IF_ERROR(Finish(ref, finish.partial_output, finish.result));
    return Finish(ref, finish.partial_lse, finish.result_lse);
  }
  Status Compute(StepRef ref, const RoundStep& round) { return Finish(ref, round.source, round.destination); }
  Status Finish(StepRef ref, SlotId source, SlotId destination) {
    return slots_.ForEachBlock(ref.rank, source, [&](HeadRange heads, Rows& rows) {
      Rows& target = slots_.BlockAt(ref.rank, destination, heads.begin);
      for (const Rows::Run& run : rows.runs()) {
        if (!run.value.defined) {
          return Error(plan_, ref,
                       absl::StrCat("finishes rows ", Text(run.rows), " of slot ", source, ", which hold nothing yet"));
        }
        if (SlotOf(ref.rank, destination).external) {
          TESSERA_RETURN_IF_ERROR(CheckFirstWrite(ref, destination, target, run.rows));
        }
        target.Assign(run.rows, run.value);
      }
      return absl::OkStatus();
    });
  }

  const PlanView& plan_;
  const StepIndex& index_;
  const Meetings& meetings_;
  SlotStates slots_;
  Outcome outcome_;
};

}  // namespace

StatusOr<Outcome> ExecuteSymbolically(const PlanView& plan, const StepIndex& index, const Meetings& meetings,
                                      std::span<const int> order) {
  return Interpreter(plan, index, meetings).Run(order);
}

}  // namespace tessera::verify
