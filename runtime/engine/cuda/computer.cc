#include "runtime/engine/cuda/computer.h"

#include <vector>

#include "kernels/cuda/steps.h"

namespace tessera {
namespace {

constexpr int64_t kListAlignment = 256;

template <typename AttendStepOfPass>
cuda::AttendShape ShapeOf(const Problem& problem, const RankProgram& program, const AttendStepOfPass& step) {
  const Slot& query = program.slots[step.query];
  const Slot& key = program.slots[step.key];
  cuda::AttendShape shape;
  shape.dtype = problem.dtype;
  shape.qk_width = problem.qk_width;
  shape.v_width = problem.v_width;
  shape.heads = query.heads.size();
  shape.kv_heads = key.heads.size();
  shape.first_query_head = query.heads.begin;
  shape.first_kv_head = key.heads.begin;
  shape.group = problem.group();
  shape.scale = problem.EffectiveScale();
  shape.soft_cap = problem.score.soft_cap;
  shape.alibi = problem.score.alibi;
  shape.position_offset = problem.key_tokens - problem.query_tokens;
  return shape;
}

cuda::ConstDeviceView Read(const SlotTable& slots, SlotId id) {
  const TensorView view = slots.View(id);
  return {view.data, view.row_stride, view.head_stride};
}
cuda::DeviceView Write(const SlotTable& slots, SlotId id) {
  const TensorView view = slots.View(id);
  return {view.data, view.row_stride, view.head_stride};
}

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

Status Run(const DeltaStep& delta, const SlotTable& slots, CUstream_st* stream) {
  return cuda::ComputeDelta(slots.View(delta.output), slots.View(delta.output_gradient), slots.View(delta.delta),
                            stream);
}

}  // namespace

StatusOr<CudaComputer> CudaComputer::Create(const Problem& problem, const RankProgram& program,
                                            const CudaDevice& device, const cuda::AttendKernel& kernel,
                                            const CudaStream& stream) {
  CudaComputer computer;
  computer.program_ = &program;
  computer.kernel_ = &kernel;
  std::vector<std::byte> lists;
  const auto append = [&](std::vector<std::byte>& bytes) {
    lists.resize((lists.size() + kListAlignment - 1) / kListAlignment * kListAlignment);
    const auto offset = static_cast<int64_t>(lists.size());
    lists.insert(lists.end(), bytes.begin(), bytes.end());
    bytes = {};  // a million tokens have long lists
    return offset;
  };
  for (StepId id = 0; id < static_cast<StepId>(program.steps.size()); ++id) {
    const auto* attend = std::get_if<AttendStep>(&program.steps[id].body);
    if (attend == nullptr || attend->heads.empty()) continue;
    PlannedAttend planned;
    planned.shape = ShapeOf(problem, program, *attend);
    TESSERA_ASSIGN_OR_RETURN(planned.work,
                             cuda::PlanAttend(kernel, planned.shape, attend->tiles, problem.mask.bands()));
    planned.offset = append(planned.work.bytes);
    computer.attends_.emplace(id, std::move(planned));
  }
  const auto bytes = static_cast<int64_t>(lists.size());
  TESSERA_ASSIGN_OR_RETURN(computer.lists_,
                           DeviceBuffer::Allocate(device, bytes, "lists of attention work", stream.handle()));
  TESSERA_RETURN_IF_ERROR(CopyAsync(computer.lists_.data(), lists.data(), bytes, stream.handle()));
  TESSERA_RETURN_IF_ERROR(stream.Synchronize("copying attention work to the device"));
  return computer;
}

Status CudaComputer::Launch(const AttendStep& step, const PlannedAttend& planned, const SlotTable& slots,
                            const CudaHeadVectors& vectors, CUstream_st* stream) const {
  cuda::AttendPointers pointers;
  pointers.query = Read(slots, step.query);
  pointers.key = Read(slots, step.key);
  pointers.value = Read(slots, step.value);
  pointers.output = Write(slots, step.partial_output);
  pointers.lse = Write(slots, step.partial_lse);
  if (planned.shape.alibi) pointers.alibi_slopes = vectors.alibi_slopes + planned.shape.first_query_head;
  pointers.work = lists_.data() + planned.offset;
  return cuda::LaunchAttend(*kernel_, planned.shape, planned.work, pointers, stream);
}

Status CudaComputer::Launch(StepId step, const SlotTable& slots, const CudaHeadVectors& vectors,
                            CUstream_st* stream) const {
  const StepBody& body = program_->steps[step].body;
  if (const auto* attend = std::get_if<AttendStep>(&body)) {
    const auto planned = attends_.find(step);
    return planned == attends_.end() ? absl::OkStatus() : Launch(*attend, planned->second, slots, vectors, stream);
  }
  if (const auto* finish = std::get_if<FinishStep>(&body)) {
    const int first_head = slots.slot(finish->partial_output).heads.begin;
    return cuda::FinishPartials(slots.View(finish->partial_output), slots.View(finish->partial_lse),
                                vectors.sinks == nullptr ? nullptr : vectors.sinks + first_head,
                                slots.View(finish->result), slots.View(finish->result_lse), stream);
  }
  return std::visit(
      [&](const auto& other) -> Status {
        if constexpr (requires { Run(other, slots, stream); }) {
          return Run(other, slots, stream);
        } else {
          return absl::InternalError(
              absl::StrCat("nothing here computes a ", std::string(KindName(body)), " step on a device"));
        }
      },
      body);
}

}  // namespace tessera
