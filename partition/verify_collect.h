// The end of the symbolic execution of Verify(): what the caller's outputs hold. Private to Verify().
#pragma once

#include <string>
#include <vector>

#include "partition/verify_internal.h"
#include "partition/verify_slot_states.h"

namespace tessera::verify {

inline const char* SideName(SlotContent content) {
  return IsOnKeySide(content) ? "key" : "query";
}
// The tokens of `rows` when `tokens` start at first_row.
inline Segment TokensOfRows(const Segment& tokens, int64_t first_row, Range rows) {
  return Rows(tokens, {rows.begin - first_row, rows.end - first_row});
}

class Collector {
 public:
  Collector(const PlanView& plan, SlotStates& slots) : plan_(plan), slots_(slots) {}

  StatusOr<std::vector<FinishedRows>> Collect() {
    for (const RankProgram& program : plan_.programs) {
      for (SlotId slot = plan_.inputs; slot < plan_.externals; ++slot) {
        TESSERA_RETURN_IF_ERROR(Collect(program.rank, slot));
      }
    }
    return std::move(rows_);
  }

 private:
  // What ended up in one of the caller's outputs, cut where the layout or the history changes.
  Status Collect(int rank, SlotId slot) {
    const SlotContent output = slots_.SlotOf(rank, slot).content;
    const std::vector<Segment> tokens = plan_.external(rank, slot).tokens;
    return slots_.ForEachBlock(rank, slot, [&](HeadRange heads, SlotStates::Rows& results) {
      int64_t row = 0;
      Status status;
      for (const Segment& segment : tokens) {
        results.ForEach({row, row + segment.count}, [&](const SlotStates::Rows::Run& run) {
          status = CollectRun({rank, output, heads, TokensOfRows(segment, row, run.rows), run.value.bag}, run.value);
          return status.ok();
        });
        TESSERA_RETURN_IF_ERROR(status);
        row += segment.count;
      }
      return status;
    });
  }
  Status CollectRun(const FinishedRows& rows, const Holding& held) {
    const Segment& tokens = rows.tokens;
    const auto error = [&](const std::string& what) {
      return absl::InvalidArgumentError(absl::StrCat("contents: rank ", rows.rank, " ", SideName(rows.output),
                                                     " tokens ", Text(tokens), " heads ", Text(rows.heads), ": ",
                                                     std::string(Name(rows.output)), what));
    };
    if (!held.defined) return error(" is never written");
    if (held.has_tokens && !held.Matches(tokens.begin, tokens.stride, tokens.count)) {
      return error(absl::StrCat(" is that of token ", held.token));
    }
    rows_.push_back(rows);
    return absl::OkStatus();
  }

  const PlanView& plan_;
  SlotStates& slots_;
  std::vector<FinishedRows> rows_;
};

}  // namespace tessera::verify
