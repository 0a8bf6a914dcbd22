#include "runtime/engine/cuda/attention.h"

#include <functional>

#include "collectives/agreement.h"
#include "kernels/cuda/steps.h"
#include "runtime/engine/bindings.h"
#include "runtime/engine/cuda/operator.h"
#include "runtime/engine/cuda/ready_pass.h"

namespace tessera {
namespace {

Status CheckVector(const char* name, const float* values, bool needed) {
  if ((values != nullptr) == needed) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      name, needed ? " is null; the problem needs one number per head" : " is given; the problem needs none"));
}

Status CheckVectors(const Problem& problem, const CudaHeadVectors& vectors) {
  TESSERA_RETURN_IF_ERROR(CheckVector("alibi_slopes", vectors.alibi_slopes, problem.score.alibi));
  return CheckVector("sinks", vectors.sinks, problem.score.sink);
}

}  // namespace

struct CudaAttention::State {
  State(Communicator& control, StreamCommunicator& data, const CudaDevice& device,
        std::chrono::milliseconds longest_step)
      : gpu(control, data, device, longest_step) {}

  Status Prepare(const PlanSpec& spec, const CudaAttentionOptions& options);
  Status Execute(CudaReadyPass& pass, const std::function<Status()>& submit, CUstream_st* stream) {
    return gpu.Execute(pass.executor(), nullptr, submit, stream);
  }
  Status SumSinkGradient(const CudaHeadVectors& vectors, float* gradient, CUstream_st* stream);

  CudaOperator gpu;
  const cuda::AttendKernel* kernel = nullptr;
  std::unique_ptr<CudaReadyPass> forward, backward;
  DeviceBuffer sink_sum;  // [query_heads] fp32: this rank's part of the sinks' gradient
};

Status CudaAttention::State::Prepare(const PlanSpec& spec, const CudaAttentionOptions& options) {
  const Problem& problem = spec.problem;
  const CudaDevice& device = gpu.device();
  const cuda::AttendTraits traits{problem.dtype, problem.qk_width, problem.v_width,
                                  10 * device.capability().major + device.capability().minor};
  TESSERA_ASSIGN_OR_RETURN(kernel, cuda::FindAttendKernel(traits, options.kernel));
  TESSERA_ASSIGN_OR_RETURN(forward, CudaReadyPass::Create(spec, device, gpu.data(), *kernel, nullptr, gpu.own()));
  if (!options.backward) return absl::OkStatus();
  TESSERA_ASSIGN_OR_RETURN(const cuda::BackwardKernel* const backward_kernel,
                           cuda::FindBackwardKernel(traits, options.kernel));
  PlanSpec backward_spec = spec;
  backward_spec.pass = Pass::kBackward;
  TESSERA_ASSIGN_OR_RETURN(
      backward, CudaReadyPass::Create(backward_spec, device, gpu.data(), *kernel, backward_kernel, gpu.own()));
  if (!problem.score.sink) return absl::OkStatus();
  const int64_t bytes = problem.query_heads * static_cast<int64_t>(sizeof(float));
  TESSERA_ASSIGN_OR_RETURN(sink_sum,
                           DeviceBuffer::Allocate(device, bytes, "the gradient of the sinks", gpu.own().handle()));
  return gpu.own().Synchronize("preparing the gradient of the sinks");
}

// The sink is a key without a value; its gradient is a sum over all queries of all ranks, added in rank order.
Status CudaAttention::State::SumSinkGradient(const CudaHeadVectors& vectors, float* gradient, CUstream_st* stream) {
  TESSERA_RETURN_IF_ERROR(FillAsync(sink_sum.data(), 0, sink_sum.bytes(), stream));
  auto* const local = reinterpret_cast<float*>(sink_sum.data());
  const SlotTable& slots = backward->slots();
  TESSERA_RETURN_IF_ERROR(
      cuda::AddSinkGradient(slots.View(kResultLseSlot), slots.View(kOwnDeltaSlot), vectors.sinks, local, stream));
  const auto heads = static_cast<size_t>(backward->spec().problem.query_heads);
  return gpu.data().AllReduceSum({local, heads}, {gradient, heads}, stream);
}

CudaAttention::CudaAttention(std::unique_ptr<State> state) : state_(std::move(state)) {}
CudaAttention::~CudaAttention() = default;

StatusOr<std::unique_ptr<CudaAttention>> CudaAttention::Create(Communicator& control, StreamCommunicator& data,
                                                               const CudaDevice& device, const PlanSpec& spec,
                                                               const CudaAttentionOptions& options) {
  TESSERA_RETURN_IF_ERROR(AgreeOnHash(control, Hash(spec.problem), "problem"));
  // Whether there is a backward pass is part of what all ranks must do alike.
  TESSERA_RETURN_IF_ERROR(AgreeOnHash(control, Hash(spec) + (options.backward ? 1 : 0), "plan"));
  // From here on every rank sees the same spec, so these checks give the same answer everywhere.
  TESSERA_RETURN_IF_ERROR(Validate(spec.problem));
  if (control.size() != spec.mesh.size()) {
    return absl::InvalidArgumentError(absl::StrFormat("the plan is for %d ranks (%s) and the communicator has %d",
                                                      spec.mesh.size(), spec.mesh.ToString(), control.size()));
  }
  auto state = std::make_unique<State>(control, data, device, options.longest_step);
  TESSERA_RETURN_IF_ERROR(
      state->gpu.Prepare([&] { return state->Prepare(spec, options); }, "preparing to execute the plan"));
  return std::unique_ptr<CudaAttention>(new CudaAttention(std::move(state)));
}

Status CudaAttention::Forward(const ConstTensorView& query, const ConstTensorView& key, const ConstTensorView& value,
                              const TensorView& output, const TensorView& lse, const CudaHeadVectors& vectors,
                              CUstream_st* stream) {
  State& state = *state_;
  TESSERA_RETURN_IF_ERROR(state.gpu.failure());
  CudaReadyPass& pass = *state.forward;
  const Problem& problem = pass.spec().problem;
  const Binding bindings[] = {{kQuerySlot, "query", query, false},
                              {kKeySlot, "key", key, false},
                              {kValueSlot, "value", value, false},
                              {kResultSlot, "output", output, true},
                              {kResultLseSlot, "lse", lse, true}};
  TESSERA_RETURN_IF_ERROR(CheckBindings(bindings, pass.program().slots, problem.dtype, MemorySpace::kDevice));
  TESSERA_RETURN_IF_ERROR(CheckVectors(problem, vectors));
  return state.Execute(
      pass, [&] { return pass.Submit(bindings, vectors, stream); }, stream);
}

Status CudaAttention::Backward(const CudaBackwardTensors& tensors, const CudaHeadVectors& vectors,
                               CUstream_st* stream) {
  State& state = *state_;
  TESSERA_RETURN_IF_ERROR(state.gpu.failure());
  if (state.backward == nullptr) {
    return absl::FailedPreconditionError("backward: this attention was created without options.backward");
  }
  if (!state.gpu.has_run()) {
    return absl::FailedPreconditionError(
        "backward: forward has not run; it produces the output and lse that backward reads");
  }
  CudaReadyPass& pass = *state.backward;
  const Problem& problem = pass.spec().problem;
  const Binding bindings[] = {{kQuerySlot, "query", tensors.query, false},
                              {kKeySlot, "key", tensors.key, false},
                              {kValueSlot, "value", tensors.value, false},
                              {kResultSlot, "output", tensors.output, false},
                              {kResultLseSlot, "lse", tensors.lse, false},
                              {kOutputGradientSlot, "output_gradient", tensors.output_gradient, false},
                              {kQueryGradientSlot, "query_gradient", tensors.query_gradient, true},
                              {kKeyGradientSlot, "key_gradient", tensors.key_gradient, true},
                              {kValueGradientSlot, "value_gradient", tensors.value_gradient, true}};
  TESSERA_RETURN_IF_ERROR(CheckBindings(bindings, pass.program().slots, problem.dtype, MemorySpace::kDevice));
  TESSERA_RETURN_IF_ERROR(CheckOutputsApart(bindings));
  TESSERA_RETURN_IF_ERROR(CheckVectors(problem, vectors));
  TESSERA_RETURN_IF_ERROR(CheckVector("sink_gradient", tensors.sink_gradient, problem.score.sink));
  const auto submit = [&]() -> Status {
    TESSERA_RETURN_IF_ERROR(pass.Submit(bindings, vectors, stream));
    return problem.score.sink ? state.SumSinkGradient(vectors, tensors.sink_gradient, stream) : absl::OkStatus();
  };
  return state.Execute(pass, submit, stream);
}

Status CudaAttention::Synchronize() {
  return state_->gpu.Synchronize();
}
const RankProgram& CudaAttention::program() const {
  return state_->forward->program();
}
std::string_view CudaAttention::kernel_name() const {
  return state_->kernel->name();
}
int64_t CudaAttention::slot_bytes() const {
  const State& state = *state_;
  return state.forward->program().SlotBytes() + (state.backward ? state.backward->program().SlotBytes() : 0);
}

}  // namespace tessera
