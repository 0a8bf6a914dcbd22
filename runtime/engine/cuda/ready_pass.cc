#include "runtime/engine/cuda/ready_pass.h"

#include "partition/message_rounds.h"
#include "partition/planner.h"
#include "runtime/engine/cuda/regions.h"

namespace tessera {

StatusOr<std::unique_ptr<CudaReadyPass>> CudaReadyPass::Create(const PlanSpec& spec, const CudaDevice& device,
                                                               StreamCommunicator& data,
                                                               const cuda::AttendKernel& forward,
                                                               const cuda::BackwardKernel* backward,
                                                               const CudaStream& own) {
  auto pass = std::unique_ptr<CudaReadyPass>(new CudaReadyPass(spec, device, own));
  Plan plan = BuildPlan(spec);
  TESSERA_ASSIGN_OR_RETURN(const auto rounds, MessageRounds(plan));
  pass->program_ = std::move(plan.programs[data.rank()]);
  const RankProgram& program = pass->program_;
  pass->slots_ = SlotTable::Unbound(program, spec.problem.dtype, MemorySpace::kDevice);
  for (SlotId id = 0; id < static_cast<SlotId>(program.slots.size()); ++id) {
    if (program.slots[id].external) continue;
    TESSERA_ASSIGN_OR_RETURN(DeviceBuffer memory, DeviceBuffer::Allocate(device, program.slots[id].bytes(),
                                                                         absl::StrCat("plan slot ", id), own.handle()));
    pass->slots_.Bind(id, memory.data());
    pass->memory_.push_back(std::move(memory));
  }
  TESSERA_ASSIGN_OR_RETURN(pass->work_,
                           CudaAttentionWork::Create(spec.problem, program, device, forward, backward, own));
  TESSERA_ASSIGN_OR_RETURN(pass->executor_, CudaExecutor::Create(program, rounds[program.rank], device, data));
  TESSERA_RETURN_IF_ERROR(own.Synchronize("preparing the memory of a plan"));
  return pass;
}

StatusOr<TensorView> CudaReadyPass::DenseCopy(const Binding& binding) {
  const ConstTensorView& tensor = binding.view;
  DeviceBuffer& copy = dense_[binding.slot];
  if (copy.bytes() < tensor.bytes()) {
    TESSERA_ASSIGN_OR_RETURN(
        copy, DeviceBuffer::Allocate(device_, tensor.bytes(), "a dense copy of a strided tensor", own_.handle()));
    // Only the first execution waits here: the memory must exist before the caller's stream uses it.
    TESSERA_RETURN_IF_ERROR(own_.Synchronize("allocating a dense copy of a strided tensor"));
  }
  TensorView view = TensorView::Dense(copy.data(), tensor.dtype, tensor.rows, tensor.heads, tensor.width);
  view.space = MemorySpace::kDevice;
  return view;
}

Status CudaReadyPass::Submit(std::span<const Binding> bindings, const CudaHeadVectors& vectors, CUstream_st* stream) {
  std::vector<TensorView> bound;
  for (const Binding& binding : bindings) {
    TensorView view = Writable(binding.view);
    if (!view.IsDense()) {
      TESSERA_ASSIGN_OR_RETURN(view, DenseCopy(binding));
      if (!binding.output) TESSERA_RETURN_IF_ERROR(CopyTensorAsync(binding.view, view, stream));
    }
    slots_.Bind(binding.slot, view.data);
    bound.push_back(view);
  }
  TESSERA_RETURN_IF_ERROR(executor_->Submit(slots_, CudaAttentionComputer(*work_, vectors), stream));
  for (size_t i = 0; i < bindings.size(); ++i) {
    if (!bindings[i].output || bound[i].data == bindings[i].view.data) continue;
    TESSERA_RETURN_IF_ERROR(CopyTensorAsync(bound[i], Writable(bindings[i].view), stream));
  }
  return absl::OkStatus();
}

}  // namespace tessera
