#include "runtime/engine/cuda/attention.h"

#include <chrono>
#include <functional>
#include <thread>

#include "collectives/agreement.h"
#include "kernels/cuda/steps.h"
#include "runtime/device/cuda/graph.h"
#include "runtime/engine/bindings.h"
#include "runtime/engine/cuda/ready_pass.h"

namespace tessera {
namespace {

using Clock = std::chrono::steady_clock;

// How often a waiting rank looks at the GPU, and how often at its peers.
constexpr auto kPollInterval = std::chrono::microseconds(50);
constexpr auto kHealthInterval = std::chrono::milliseconds(20);

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
  State(Communicator& control_comm, StreamCommunicator& data_comm, const CudaDevice& gpu)
      : control(control_comm), data(data_comm), device(gpu) {}

  Status Prepare(const PlanSpec& spec, const CudaAttentionOptions& options);
  // Submits an execution and marks its end.
  Status Execute(CudaReadyPass& pass, const std::function<Status()>& submit, CUstream_st* stream);
  Status SumSinkGradient(const CudaHeadVectors& vectors, float* gradient, CUstream_st* stream);
  Status Wait();

  Communicator& control;
  StreamCommunicator& data;
  const CudaDevice device;
  CudaStream own;    // memory belongs to it: it waits for every execution, so that nothing in use is freed
  CudaEvent finish;  // of the last execution, on the caller's stream
  const cuda::AttendKernel* kernel = nullptr;
  std::unique_ptr<CudaReadyPass> forward, backward;
  DeviceBuffer sink_sum;             // [query_heads] fp32: this rank's part of the sinks' gradient
  CudaReadyPass* running = nullptr;  // the last that was submitted
  Status failure;                    // the first error; sticks
};

Status CudaAttention::State::Prepare(const PlanSpec& spec, const CudaAttentionOptions& options) {
  if (data.size() != control.size() || data.rank() != control.rank()) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "the data communicator has this process as rank %d of %d, the control communicator as rank %d of %d",
        data.rank(), data.size(), control.rank(), control.size()));
  }
  const Problem& problem = spec.problem;
  const cuda::AttendTraits traits{problem.dtype, problem.qk_width, problem.v_width,
                                  10 * device.capability().major + device.capability().minor};
  TESSERA_ASSIGN_OR_RETURN(kernel, cuda::FindAttendKernel(traits, options.kernel));
  TESSERA_ASSIGN_OR_RETURN(own, CudaStream::Create(device));
  TESSERA_ASSIGN_OR_RETURN(finish, CudaEvent::Create(device));
  TESSERA_ASSIGN_OR_RETURN(forward, CudaReadyPass::Create(spec, device, data, *kernel, nullptr, own));
  if (!options.backward) return absl::OkStatus();
  TESSERA_ASSIGN_OR_RETURN(const cuda::BackwardKernel* const backward_kernel,
                           cuda::FindBackwardKernel(traits, options.kernel));
  PlanSpec backward_spec = spec;
  backward_spec.pass = Pass::kBackward;
  TESSERA_ASSIGN_OR_RETURN(backward, CudaReadyPass::Create(backward_spec, device, data, *kernel, backward_kernel, own));
  if (!problem.score.sink) return absl::OkStatus();
  const int64_t bytes = problem.query_heads * static_cast<int64_t>(sizeof(float));
  TESSERA_ASSIGN_OR_RETURN(sink_sum, DeviceBuffer::Allocate(device, bytes, "the gradient of the sinks", own.handle()));
  return own.Synchronize("preparing the gradient of the sinks");
}

Status CudaAttention::State::Execute(CudaReadyPass& pass, const std::function<Status()>& submit, CUstream_st* stream) {
  failure = [&]() -> Status {
    TESSERA_RETURN_IF_ERROR(submit());
    TESSERA_ASSIGN_OR_RETURN(const bool capturing, IsCapturing(stream));
    if (capturing) return absl::OkStatus();  // nothing has been executed
    running = &pass;
    TESSERA_RETURN_IF_ERROR(finish.Record(stream));
    return finish.MakeWait(own.handle());
  }();
  return failure;
}

// The sink is a key without a value; its gradient is a sum over all queries of all ranks, added in rank order.
Status CudaAttention::State::SumSinkGradient(const CudaHeadVectors& vectors, float* gradient, CUstream_st* stream) {
  TESSERA_RETURN_IF_ERROR(FillAsync(sink_sum.data(), 0, sink_sum.bytes(), stream));
  auto* const local = reinterpret_cast<float*>(sink_sum.data());
  const SlotTable& slots = backward->slots();
  TESSERA_RETURN_IF_ERROR(
      cuda::AddSinkGradient(slots.View(kResultLseSlot), slots.View(kOwnDeltaSlot), vectors.sinks, local, stream));
  const auto heads = static_cast<size_t>(backward->spec().problem.query_heads);
  return data.AllReduceSum({local, heads}, {gradient, heads}, stream);
}

Status CudaAttention::State::Wait() {
  CudaExecutor::Position position;
  const auto poll = [&]() -> Status {
    auto next_health = Clock::now();
    for (;;) {
      TESSERA_ASSIGN_OR_RETURN(const bool over, finish.Done());
      if (over) return absl::OkStatus();
      TESSERA_ASSIGN_OR_RETURN(position, running->executor().Where());
      control.ReportProgress({position.communicates ? RankState::kWaiting : RankState::kComputing, position.step});
      if (const auto now = Clock::now(); now >= next_health) {
        TESSERA_RETURN_IF_ERROR(data.Poll());
        TESSERA_RETURN_IF_ERROR(control.Health());
        next_health = now + kHealthInterval;
      }
      std::this_thread::sleep_for(kPollInterval);
    }
  };
  Status status = poll();
  if (status.ok()) {
    control.ReportProgress({RankState::kIdle, -1});
    return status;
  }
  const RankProgram& program = running->program();
  const std::string where = position.step == kNone ? "end" : std::string(KindName(program.steps[position.step].body));
  control.ReportProgress({RankState::kFailed, position.step});
  status = Status(status.code(), absl::StrFormat("rank %d, plan step %d (%s): %s", program.rank, position.step, where,
                                                 std::string(status.message())));
  data.Abort(status);
  return status;
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
  auto state = std::make_unique<State>(control, data, device);
  TESSERA_RETURN_IF_ERROR(AgreeOnStatus(control, state->Prepare(spec, options), "preparing to execute the plan"));
  return std::unique_ptr<CudaAttention>(new CudaAttention(std::move(state)));
}

Status CudaAttention::Forward(const ConstTensorView& query, const ConstTensorView& key, const ConstTensorView& value,
                              const TensorView& output, const TensorView& lse, const CudaHeadVectors& vectors,
                              CUstream_st* stream) {
  State& state = *state_;
  TESSERA_RETURN_IF_ERROR(state.failure);
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
  TESSERA_RETURN_IF_ERROR(state.failure);
  if (state.backward == nullptr) {
    return absl::FailedPreconditionError("backward: this attention was created without options.backward");
  }
  if (state.running == nullptr) {
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
  State& state = *state_;
  if (state.failure.ok() && state.running != nullptr) state.failure = state.Wait();
  return state.failure;
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
