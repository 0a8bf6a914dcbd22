// The compute steps that are no operator's own.
#include <algorithm>
#include <cstring>
#include <limits>

#include "kernels/attention.h"
#include "runtime/engine/step_computer.h"

namespace tessera {
namespace {

void Run(const ClearStep& clear, const SlotTable& slots) {
  std::memset(slots.data(clear.partial_output) + clear.rows.begin * slots.RowBytes(clear.partial_output), 0,
              clear.rows.size() * slots.RowBytes(clear.partial_output));
  const TensorView lse = slots.View(clear.partial_lse);
  for (int64_t i = clear.rows.begin * lse.heads; i < clear.rows.end * lse.heads; ++i) {
    StoreFromFloat(lse.data, lse.dtype, i, -std::numeric_limits<float>::infinity());
  }
}

void Run(const MergeStep& merge, const SlotTable& slots) {
  for (const MergeRows& rows : merge.rows) {
    MergePartials(slots.View(merge.output), slots.View(merge.lse), rows.destination_row,
                  slots.View(merge.source_output), slots.View(merge.source_lse), rows.source_row, rows.count);
  }
}

void Run(const ZeroStep& zero, const SlotTable& slots) {
  std::memset(slots.data(zero.slot) + zero.rows.begin * slots.RowBytes(zero.slot), 0,
              zero.rows.size() * slots.RowBytes(zero.slot));
}

template <typename Real>
void AddRows(const TensorView& source, int64_t source_row, const TensorView& destination, int64_t destination_row,
             int first_head, int64_t count) {
  for (int64_t row = 0; row < count; ++row) {
    const auto* from = static_cast<const Real*>(source.At(source_row + row, 0));
    auto* to = static_cast<Real*>(destination.At(destination_row + row, first_head));
    for (int64_t i = 0; i < int64_t{source.heads} * source.width; ++i) to[i] += from[i];
  }
}

// Heads of the source begin somewhere among those of the destination.
void Run(const AddStep& add, const SlotTable& slots) {
  const TensorView source = slots.View(add.source), destination = slots.View(add.destination);
  const int first_head = slots.slot(add.source).heads.begin - slots.slot(add.destination).heads.begin;
  const auto add_rows = source.dtype == DType::kFloat64 ? AddRows<double> : AddRows<float>;
  for (const MergeRows& rows : add.rows) {
    add_rows(source, rows.source_row, destination, rows.destination_row, first_head, rows.count);
  }
}

// Rounds accumulators to the destination's dtype; equal shapes, dense. Sums in fp64 are never rounded.
void Run(const RoundStep& round, const SlotTable& slots) {
  const TensorView source = slots.View(round.source), destination = slots.View(round.destination);
  if (source.dtype == DType::kFloat64) {
    if (source.bytes() > 0) std::memcpy(destination.data, source.data, source.bytes());
    return;
  }
  const auto* from = static_cast<const float*>(source.data);
  for (int64_t i = 0; i < source.elements(); ++i) StoreFromFloat(destination.data, destination.dtype, i, from[i]);
}

}  // namespace

Status ComputeCommonStep(const StepBody& body, const SlotTable& slots) {
  return std::visit(
      [&](const auto& step) -> Status {
        if constexpr (requires { Run(step, slots); }) {
          Run(step, slots);
          return absl::OkStatus();
        } else {
          return absl::InternalError(absl::StrCat("nothing here computes a ", std::string(KindName(body)), " step"));
        }
      },
      body);
}

}  // namespace tessera
