// The compute steps that are no operator's own, on a GPU.
#include "kernels/cuda/steps.h"
#include "runtime/engine/cuda/step_computer.h"

namespace tessera {
namespace {

Status Run(const ClearStep& clear, const SlotTable& slots, CUstream_st* stream) {
  return cuda::ClearPartials(slots.View(clear.partial_output), slots.View(clear.partial_lse), clear.rows, stream);
}

Status Run(const MergeStep& merge, const SlotTable& slots, CUstream_st* stream) {
  for (const MergeRows& rows : merge.rows) {
    TESSERA_RETURN_IF_ERROR(cuda::MergePartials(slots.View(merge.output), slots.View(merge.lse), rows.destination_row,
                                                slots.View(merge.source_output), slots.View(merge.source_lse),
                                                rows.source_row, rows.count, stream));
  }
  return absl::OkStatus();
}

Status Run(const ZeroStep& zero, const SlotTable& slots, CUstream_st* stream) {
  return cuda::ZeroRows(slots.View(zero.slot), zero.rows, stream);
}

// Heads of the source begin somewhere among those of the destination.
Status Run(const AddStep& add, const SlotTable& slots, CUstream_st* stream) {
  const int first_head = slots.slot(add.source).heads.begin - slots.slot(add.destination).heads.begin;
  for (const MergeRows& rows : add.rows) {
    TESSERA_RETURN_IF_ERROR(cuda::AddRows(slots.View(add.source), rows.source_row, slots.View(add.destination),
                                          rows.destination_row, first_head, rows.count, stream));
  }
  return absl::OkStatus();
}

Status Run(const RoundStep& round, const SlotTable& slots, CUstream_st* stream) {
  return cuda::RoundRows(slots.View(round.source), slots.View(round.destination), stream);
}

}  // namespace

Status LaunchCommonStep(const StepBody& body, const SlotTable& slots, CUstream_st* stream) {
  return std::visit(
      [&](const auto& step) -> Status {
        if constexpr (requires { Run(step, slots, stream); }) {
          return Run(step, slots, stream);
        } else {
          return absl::InternalError(
              absl::StrCat("nothing here launches a ", std::string(KindName(body)), " step on a GPU"));
        }
      },
      body);
}

}  // namespace tessera
