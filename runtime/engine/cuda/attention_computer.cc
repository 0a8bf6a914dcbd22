#include "runtime/engine/cuda/attention_computer.h"

#include <vector>

#include "kernels/cuda/steps.h"
#include "runtime/engine/cuda/device_views.h"

namespace tessera {
namespace {

constexpr size_t kListAlignment = 256;

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

// Moves lists of work to the end of one buffer; they may be long. Returns where they begin.
int64_t Append(std::vector<std::byte>& lists, std::vector<std::byte>& bytes) {
  lists.resize((lists.size() + kListAlignment - 1) / kListAlignment * kListAlignment);
  const auto offset = static_cast<int64_t>(lists.size());
  lists.insert(lists.end(), bytes.begin(), bytes.end());
  bytes = {};
  return offset;
}

}  // namespace

StatusOr<CudaAttentionWork> CudaAttentionWork::Create(const Problem& problem, const RankProgram& program,
                                                      const CudaDevice& device, const cuda::AttendKernel& forward,
                                                      const cuda::BackwardKernel* backward, const CudaStream& stream) {
  CudaAttentionWork result;
  result.program_ = &program;
  result.forward_ = &forward;
  result.backward_ = backward;
  std::vector<std::byte> lists;
  for (StepId id = 0; id < static_cast<StepId>(program.steps.size()); ++id) {
    const StepBody& body = program.steps[id].body;
    if (const auto* attend = std::get_if<AttendStep>(&body); attend != nullptr && !attend->heads.empty()) {
      const cuda::AttendShape shape = ShapeOf(problem, program, *attend);
      TESSERA_ASSIGN_OR_RETURN(cuda::AttendWork work,
                               cuda::PlanAttend(forward, shape, attend->tiles, problem.mask.bands()));
      const int64_t offset = Append(lists, work.bytes);
      result.attends_.emplace(id, Planned<cuda::AttendWork>{shape, std::move(work), offset});
    }
    if (const auto* attend = std::get_if<AttendBackwardStep>(&body); attend != nullptr && !attend->heads.empty()) {
      const cuda::AttendShape shape = ShapeOf(problem, program, *attend);
      TESSERA_ASSIGN_OR_RETURN(cuda::BackwardWork work,
                               cuda::PlanBackward(*backward, shape, attend->tiles, problem.mask.bands()));
      const int64_t offset = Append(lists, work.bytes);
      result.backward_attends_.emplace(id, Planned<cuda::BackwardWork>{shape, std::move(work), offset});
    }
  }
  const auto bytes = static_cast<int64_t>(lists.size());
  TESSERA_ASSIGN_OR_RETURN(result.lists_,
                           DeviceBuffer::Allocate(device, bytes, "lists of attention work", stream.handle()));
  TESSERA_RETURN_IF_ERROR(CopyAsync(result.lists_.data(), lists.data(), bytes, stream.handle()));
  TESSERA_RETURN_IF_ERROR(stream.Synchronize("copying attention work to the device"));
  return result;
}

Status CudaAttentionComputer::Attend(StepId id, const AttendStep& step, const SlotTable& slots,
                                     CUstream_st* stream) const {
  const auto found = work_.attends_.find(id);
  if (found == work_.attends_.end()) return absl::OkStatus();
  const auto& [shape, work, offset] = found->second;
  cuda::AttendPointers pointers;
  pointers.query = Read(slots, step.query);
  pointers.key = Read(slots, step.key);
  pointers.value = Read(slots, step.value);
  pointers.output = Write(slots, step.partial_output);
  pointers.lse = Write(slots, step.partial_lse);
  pointers.alibi_slopes = SlopesOf(shape);
  pointers.work = work_.lists_.data() + offset;
  return cuda::LaunchAttend(*work_.forward_, shape, work, pointers, stream);
}

Status CudaAttentionComputer::AttendBackward(StepId id, const AttendBackwardStep& step, const SlotTable& slots,
                                             CUstream_st* stream) const {
  const auto found = work_.backward_attends_.find(id);
  if (found == work_.backward_attends_.end()) return absl::OkStatus();
  const auto& [shape, work, offset] = found->second;
  cuda::BackwardPointers pointers;
  pointers.query = Read(slots, step.query);
  pointers.key = Read(slots, step.key);
  pointers.value = Read(slots, step.value);
  pointers.output_gradient = Read(slots, step.output_gradient);
  pointers.lse = Read(slots, step.lse);
  pointers.delta = Read(slots, step.delta);
  pointers.query_gradient = Write(slots, step.query_gradient);
  pointers.key_gradient = Write(slots, step.key_gradient);
  pointers.value_gradient = Write(slots, step.value_gradient);
  pointers.alibi_slopes = SlopesOf(shape);
  pointers.work = work_.lists_.data() + offset;
  return cuda::LaunchBackward(*work_.backward_, shape, work, pointers, stream);
}

Status CudaAttentionComputer::Launch(StepId step, const SlotTable& slots, CUstream_st* stream) const {
  const StepBody& body = work_.program_->steps[step].body;
  if (const auto* attend = std::get_if<AttendStep>(&body)) return Attend(step, *attend, slots, stream);
  if (const auto* attend = std::get_if<AttendBackwardStep>(&body)) return AttendBackward(step, *attend, slots, stream);
  if (const auto* finish = std::get_if<FinishStep>(&body)) {
    const int first_head = slots.slot(finish->partial_output).heads.begin;
    return cuda::FinishPartials(slots.View(finish->partial_output), slots.View(finish->partial_lse),
                                vectors_.sinks == nullptr ? nullptr : vectors_.sinks + first_head,
                                slots.View(finish->result), slots.View(finish->result_lse), stream);
  }
  if (const auto* delta = std::get_if<DeltaStep>(&body)) {
    return cuda::ComputeDelta(slots.View(delta->output), slots.View(delta->output_gradient), slots.View(delta->delta),
                              stream);
  }
  return LaunchCommonStep(body, slots, stream);
}

}  // namespace tessera
