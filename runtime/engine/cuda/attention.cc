#include "runtime/engine/cuda/attention.h"

#include <chrono>
#include <optional>
#include <span>
#include <thread>
#include <vector>

#include "collectives/agreement.h"
#include "partition/message_rounds.h"
#include "partition/planner.h"
#include "runtime/engine/cuda/executor.h"
#include "runtime/engine/cuda/regions.h"
#include "runtime/engine/tensor_check.h"

namespace tessera {
namespace {

using Clock = std::chrono::steady_clock;

// How often a waiting rank looks at the GPU, and how often at its peers.
constexpr auto kPollInterval = std::chrono::microseconds(50);
constexpr auto kHealthInterval = std::chrono::milliseconds(20);

// A plan of one pass made ready to run on this rank's GPU.
struct ReadyPass {
  PlanSpec spec;
  RankProgram program;
  SlotTable slots;
  std::vector<DeviceBuffer> memory;  // of slots that are not external
  std::optional<CudaComputer> computer;
  std::optional<CudaExecutor> executor;
  DeviceBuffer dense[kBackwardExternalSlots];  // copies of tensors that are not dense, made when first needed
};

// A tensor the caller gave for an external slot.
struct Binding {
  SlotId slot;
  const char* name;
  ConstTensorView view;
  bool output;
};

TensorView Writable(const ConstTensorView& view) {
  return {const_cast<void*>(view.data),
          view.dtype,
          view.space,
          view.rows,
          view.heads,
          view.width,
          view.row_stride,
          view.head_stride};
}

Status CheckVectors(const Problem& problem, const CudaHeadVectors& vectors) {
  const auto check = [](const char* name, const float* values, bool needed) {
    if ((values != nullptr) == needed) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat(
        name, needed ? " is null; the problem needs one number per head" : " is given; the problem needs none"));
  };
  TESSERA_RETURN_IF_ERROR(check("alibi_slopes", vectors.alibi_slopes, problem.score.alibi));
  return check("sinks", vectors.sinks, problem.score.sink);
}

}  // namespace

struct CudaAttention::State {
  State(Communicator& control_comm, StreamCommunicator& data_comm, const CudaDevice& gpu)
      : control(control_comm), data(data_comm), device(gpu) {}

  Status Prepare(ReadyPass& pass);
  Status Submit(ReadyPass& pass, std::span<const Binding> bindings, const CudaHeadVectors& vectors,
                CUstream_st* stream);
  Status Wait(ReadyPass& pass);

  Communicator& control;
  StreamCommunicator& data;
  CudaDevice device;
  CudaStream own;    // memory belongs to it: it waits for every execution, so that nothing in use is freed
  CudaEvent finish;  // of the last execution, on the caller's stream
  const cuda::AttendKernel* kernel = nullptr;
  ReadyPass forward;
  ReadyPass* running = nullptr;
  Status failure;  // the first error; sticks
};

Status CudaAttention::State::Prepare(ReadyPass& pass) {
  // Rounds follow from the programs of all ranks.
  Plan plan = BuildPlan(pass.spec);
  TESSERA_ASSIGN_OR_RETURN(const auto rounds, MessageRounds(plan));
  pass.program = std::move(plan.programs[control.rank()]);
  pass.slots = SlotTable::Unbound(pass.program, pass.spec.problem.dtype, MemorySpace::kDevice);
  for (SlotId id = 0; id < static_cast<SlotId>(pass.program.slots.size()); ++id) {
    const Slot& slot = pass.program.slots[id];
    if (slot.external) continue;
    TESSERA_ASSIGN_OR_RETURN(
        pass.memory.emplace_back(),
        DeviceBuffer::Allocate(device, slot.bytes(), absl::StrCat("plan slot ", id), own.handle()));
    pass.slots.Bind(id, pass.memory.back().data());
  }
  TESSERA_ASSIGN_OR_RETURN(pass.computer, CudaComputer::Create(pass.spec.problem, pass.program, device, *kernel, own));
  TESSERA_ASSIGN_OR_RETURN(pass.executor, CudaExecutor::Create(pass.program, rounds[control.rank()], device, data));
  return own.Synchronize("preparing the plan's memory");
}

Status CudaAttention::State::Submit(ReadyPass& pass, std::span<const Binding> bindings, const CudaHeadVectors& vectors,
                                    CUstream_st* stream) {
  std::vector<TensorView> bound;
  for (const Binding& binding : bindings) {
    TensorView view = Writable(binding.view);  // plans never write to input slots: see Verify
    if (!view.IsDense()) {
      DeviceBuffer& copy = pass.dense[binding.slot];
      if (copy.bytes() < view.bytes()) {
        TESSERA_ASSIGN_OR_RETURN(
            copy, DeviceBuffer::Allocate(device, view.bytes(), "a dense copy of a strided tensor", own.handle()));
        TESSERA_RETURN_IF_ERROR(own.Synchronize("allocating a dense copy of a strided tensor"));
      }
      view = TensorView::Dense(copy.data(), view.dtype, view.rows, view.heads, view.width);
      if (!binding.output) TESSERA_RETURN_IF_ERROR(CopyTensorAsync(binding.view, view, stream));
    }
    pass.slots.Bind(binding.slot, view.data);
    bound.push_back(view);
  }
  running = &pass;
  TESSERA_RETURN_IF_ERROR(pass.executor->Submit(pass.slots, *pass.computer, vectors, stream));
  for (size_t i = 0; i < bindings.size(); ++i) {
    if (!bindings[i].output || bound[i].data == bindings[i].view.data) continue;
    TESSERA_RETURN_IF_ERROR(CopyTensorAsync(bound[i], Writable(bindings[i].view), stream));
  }
  TESSERA_RETURN_IF_ERROR(finish.Record(stream));
  return finish.MakeWait(own.handle());
}

Status CudaAttention::State::Wait(ReadyPass& pass) {
  CudaExecutor::Position position;
  const auto poll = [&]() -> Status {
    auto next_health = Clock::now();
    for (;;) {
      TESSERA_ASSIGN_OR_RETURN(const bool over, finish.Done());
      if (over) return absl::OkStatus();
      TESSERA_ASSIGN_OR_RETURN(position, pass.executor->Where());
      control.ReportProgress({position.communicates ? RankState::kWaiting : RankState::kComputing, position.step});
      if (Clock::now() >= next_health) {
        TESSERA_RETURN_IF_ERROR(data.Poll());
        TESSERA_RETURN_IF_ERROR(control.Health());
        next_health = Clock::now() + kHealthInterval;
      }
      std::this_thread::sleep_for(kPollInterval);
    }
  };
  const Status status = poll();
  if (status.ok()) {
    control.ReportProgress({RankState::kIdle, -1});
    return status;
  }
  control.ReportProgress({RankState::kFailed, position.step});
  data.Abort(status);
  const std::string kind =
      position.step == kNone ? "start" : std::string(KindName(pass.program.steps[position.step].body));
  return Status(status.code(), absl::StrFormat("rank %d, plan step %d (%s): %s", pass.program.rank, position.step, kind,
                                               std::string(status.message())));
}

CudaAttention::CudaAttention(std::unique_ptr<State> state) : state_(std::move(state)) {}
CudaAttention::~CudaAttention() = default;

StatusOr<std::unique_ptr<CudaAttention>> CudaAttention::Create(Communicator& control, StreamCommunicator& data,
                                                               const CudaDevice& device, const PlanSpec& spec,
                                                               const CudaAttentionOptions& options) {
  TESSERA_RETURN_IF_ERROR(AgreeOnHash(control, Hash(spec.problem), "problem"));
  TESSERA_RETURN_IF_ERROR(AgreeOnHash(control, Hash(spec), "plan"));
  // From here on every rank sees the same spec, so these checks give the same answer everywhere.
  TESSERA_RETURN_IF_ERROR(Validate(spec.problem));
  if (control.size() != spec.mesh.size()) {
    return absl::InvalidArgumentError(absl::StrFormat("the plan is for %d ranks (%s) and the communicator has %d",
                                                      spec.mesh.size(), spec.mesh.ToString(), control.size()));
  }
  auto state = std::make_unique<State>(control, data, device);
  state->forward.spec = spec;
  const Status local = [&]() -> Status {
    if (data.size() != control.size() || data.rank() != control.rank()) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "the data communicator has this process as rank %d of %d, the control communicator as %d of %d", data.rank(),
          data.size(), control.rank(), control.size()));
    }
    const cuda::AttendTraits traits{spec.problem.dtype, spec.problem.qk_width, spec.problem.v_width,
                                    10 * device.capability().major + device.capability().minor};
    TESSERA_ASSIGN_OR_RETURN(state->kernel, cuda::FindAttendKernel(traits, options.kernel));
    TESSERA_ASSIGN_OR_RETURN(state->own, CudaStream::Create(device));
    TESSERA_ASSIGN_OR_RETURN(state->finish, CudaEvent::Create(device));
    return state->Prepare(state->forward);
  }();
  TESSERA_RETURN_IF_ERROR(AgreeOnStatus(control, local, "preparing to execute the plan"));
  return std::unique_ptr<CudaAttention>(new CudaAttention(std::move(state)));
}

Status CudaAttention::Forward(const ConstTensorView& query, const ConstTensorView& key, const ConstTensorView& value,
                              const TensorView& output, const TensorView& lse, const CudaHeadVectors& vectors,
                              CUstream_st* stream) {
  State& state = *state_;
  TESSERA_RETURN_IF_ERROR(state.failure);
  const Problem& problem = state.forward.spec.problem;
  const Binding bindings[] = {{kQuerySlot, "query", query, false},
                              {kKeySlot, "key", key, false},
                              {kValueSlot, "value", value, false},
                              {kResultSlot, "output", output, true},
                              {kResultLseSlot, "lse", lse, true}};
  for (const Binding& b : bindings) {
    const DType dtype = b.slot == kResultLseSlot ? DType::kFloat32 : problem.dtype;
    TESSERA_RETURN_IF_ERROR(
        CheckTensor(b.name, b.view, state.forward.program.slots[b.slot], dtype, MemorySpace::kDevice));
  }
  TESSERA_RETURN_IF_ERROR(CheckVectors(problem, vectors));
  state.failure = state.Submit(state.forward, bindings, vectors, stream);
  return state.failure;
}

Status CudaAttention::Synchronize() {
  State& state = *state_;
  if (state.failure.ok() && state.running != nullptr) state.failure = state.Wait(*state.running);
  return state.failure;
}

const RankProgram& CudaAttention::program() const {
  return state_->forward.program;
}
std::string_view CudaAttention::kernel_name() const {
  return state_->kernel->name();
}
int64_t CudaAttention::slot_bytes() const {
  return state_->forward.program.SlotBytes();
}

}  // namespace tessera
