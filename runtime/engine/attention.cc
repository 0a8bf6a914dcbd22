#include "runtime/engine/attention.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "collectives/agreement.h"
#include "partition/planner.h"
#include "runtime/engine/attention_computer.h"
#include "runtime/engine/bindings.h"
#include "runtime/engine/executor.h"
#include "runtime/engine/slots.h"
#include "runtime/engine/tensor_check.h"
#include "runtime/engine/transfer.h"

namespace tessera {

namespace {

// A plan of one pass made ready to run on this rank.
struct ReadyPass {
  PlanSpec spec;
  RankProgram program;
  Communicators comms;
  SlotTable slots;
  std::unique_ptr<Executor> executor;
  HostBuffer dense[kBackwardExternalSlots];  // copies of tensors that are not dense, made when first needed
};

}  // namespace

struct Attention::State {
  AttentionOptions options;
  const AttentionKernel* kernel = nullptr;
  Communicator* world = nullptr;
  CpuStream compute;  // of both passes, which never run at once
  ReadyPass forward;
  std::unique_ptr<ReadyPass> backward;
  bool has_run_forward = false;
  ExecutionStats stats;
  Trace trace;
  Status failure;  // the first error; sticks
};

namespace {

// Copies [rows, heads, width] between views of equal shape and dtype, any strides.
void CopyTensor(const ConstTensorView& from, const TensorView& to) {
  const size_t run = from.width * SizeInBytes(from.dtype);
  for (int64_t row = 0; row < from.rows; ++row) {
    for (int head = 0; head < from.heads; ++head) std::memcpy(to.At(row, head), from.At(row, head), run);
  }
}

// Binds the tensors, runs the program, unbinds.
Status RunPass(ReadyPass& pass, std::span<const Binding> bindings, const StepComputer& computer, ExecutionStats& stats,
               Trace& trace) {
  std::vector<TensorView> bound;
  for (const Binding& binding : bindings) {
    TensorView view = Writable(binding.view);
    if (!view.IsDense()) {
      HostBuffer& copy = pass.dense[binding.slot];
      if (copy.bytes() < view.bytes()) {
        TESSERA_ASSIGN_OR_RETURN(copy, HostBuffer::Allocate(view.bytes(), "a dense copy of a strided tensor"));
      }
      view = TensorView::Dense(copy.data(), view.dtype, view.rows, view.heads, view.width);
      if (!binding.output) CopyTensor(binding.view, view);
    }
    pass.slots.Bind(binding.slot, view.data);
    bound.push_back(view);
  }
  const Traffic before = pass.comms.traffic();
  trace.events.clear();
  TESSERA_RETURN_IF_ERROR(pass.executor->Run(pass.slots, computer, stats, trace));
  stats.traffic = Since(pass.comms.traffic(), before);
  stats.slot_bytes = pass.program.SlotBytes();
  for (size_t i = 0; i < bindings.size(); ++i) {
    if (bindings[i].output && bound[i].data != bindings[i].view.data) CopyTensor(bound[i], Writable(bindings[i].view));
  }
  return absl::OkStatus();
}

Status PrepareProgram(ReadyPass& pass, int rank) {
  pass.program = BuildRankProgram(pass.spec, rank);
  TESSERA_ASSIGN_OR_RETURN(pass.slots, SlotTable::Allocate(pass.program, pass.spec.problem.dtype));
  return absl::OkStatus();
}

// The sink is a key without a value; its gradient is a sum over all queries of all ranks, added in rank order.
Status SumSinkGradient(const ReadyPass& pass, const HeadVectors& vectors, std::span<float> gradient) {
  std::vector<float> local(gradient.size(), 0.0f);
  AddSinkGradient(pass.slots.View(kResultLseSlot), pass.slots.View(kOwnDeltaSlot), vectors.sinks, local);
  TESSERA_ASSIGN_OR_RETURN(Request request, pass.comms.world->AllReduceSum(local, gradient));
  return Wait(*pass.comms.world, request, "the sum of sink gradients");
}

void Keep(ReadyPass& pass) {
  KeepForGood(std::move(pass.slots));
  for (HostBuffer& buffer : pass.dense) KeepForGood(std::move(buffer));
}

}  // namespace

Attention::Attention(std::unique_ptr<State> state) : state_(std::move(state)) {}
Attention::~Attention() {
  if (state_ == nullptr || state_->failure.ok()) return;
  Keep(state_->forward);
  if (state_->backward != nullptr) Keep(*state_->backward);
}

StatusOr<std::unique_ptr<Attention>> Attention::Create(Communicator& comm, const PlanSpec& spec,
                                                       const AttentionOptions& options) {
  TESSERA_RETURN_IF_ERROR(AgreeOnHash(comm, Hash(spec.problem), "problem"));
  // Whether there is a backward pass is part of what all ranks must do alike.
  TESSERA_RETURN_IF_ERROR(AgreeOnHash(comm, Hash(spec) + (options.backward ? 1 : 0), "plan"));
  // From here on every rank sees the same spec, so these checks give the same answer everywhere.
  TESSERA_RETURN_IF_ERROR(Validate(spec.problem));
  if (comm.size() != spec.mesh.size()) {
    return absl::InvalidArgumentError(absl::StrFormat("the plan is for %d ranks (%s) and the communicator has %d",
                                                      spec.mesh.size(), spec.mesh.ToString(), comm.size()));
  }
  auto state = std::make_unique<State>();
  state->options = options;
  state->world = &comm;
  state->trace.rank = comm.rank();
  state->forward.spec = spec;
  if (options.backward) {
    state->backward = std::make_unique<ReadyPass>();
    state->backward->spec = spec;
    state->backward->spec.pass = Pass::kBackward;
  }
  // Kernels and memory differ between machines: what fails on one rank must fail on all.
  const Status local = [&]() -> Status {
    if (options.threads < 1) {
      return absl::InvalidArgumentError(
          absl::StrFormat("options.threads is %d; it must be at least 1", options.threads));
    }
    const AttentionTraits traits{spec.problem.dtype, spec.problem.qk_width, spec.problem.v_width};
    TESSERA_ASSIGN_OR_RETURN(state->kernel, FindAttentionKernel(traits, options.kernel));
    TESSERA_RETURN_IF_ERROR(PrepareProgram(state->forward, comm.rank()));
    return options.backward ? PrepareProgram(*state->backward, comm.rank()) : absl::OkStatus();
  }();
  TESSERA_RETURN_IF_ERROR(AgreeOnStatus(comm, local, "preparing to execute the plan"));
  for (ReadyPass* pass : {&state->forward, state->backward.get()}) {
    if (pass == nullptr) continue;
    TESSERA_ASSIGN_OR_RETURN(pass->comms, Connect(comm, pass->program.groups));
    pass->executor = std::make_unique<Executor>(pass->program, pass->comms, &state->compute, options.trace);
  }
  return std::unique_ptr<Attention>(new Attention(std::move(state)));
}

Status Attention::Forward(const ConstTensorView& query, const ConstTensorView& key, const ConstTensorView& value,
                          const TensorView& output, const TensorView& lse, const HeadVectors& vectors,
                          CpuStream& stream) {
  State& state = *state_;
  TESSERA_RETURN_IF_ERROR(state.failure);
  const Problem& problem = state.forward.spec.problem;
  const Binding bindings[] = {{kQuerySlot, "query", query, false},
                              {kKeySlot, "key", key, false},
                              {kValueSlot, "value", value, false},
                              {kResultSlot, "output", output, true},
                              {kResultLseSlot, "lse", lse, true}};
  TESSERA_RETURN_IF_ERROR(CheckBindings(bindings, state.forward.program.slots, problem.dtype, MemorySpace::kHost));
  TESSERA_RETURN_IF_ERROR(CheckVector("alibi_slopes", vectors.alibi_slopes, problem.score.alibi, problem.query_heads));
  TESSERA_RETURN_IF_ERROR(CheckVector("sinks", vectors.sinks, problem.score.sink, problem.query_heads));
  stream.Submit([&state, bindings = std::to_array(bindings), vectors]() -> Status {
    const AttentionComputer computer(state.forward.spec.problem, *state.kernel, state.options.threads, vectors);
    const Status status = RunPass(state.forward, bindings, computer, state.stats, state.trace);
    if (!status.ok()) state.failure = status;
    return status;
  });
  state.has_run_forward = true;
  return absl::OkStatus();
}

Status Attention::Backward(const BackwardTensors& tensors, const HeadVectors& vectors, CpuStream& stream) {
  State& state = *state_;
  TESSERA_RETURN_IF_ERROR(state.failure);
  if (state.backward == nullptr) {
    return absl::FailedPreconditionError("backward: this attention was created without options.backward");
  }
  if (!state.has_run_forward) {
    return absl::FailedPreconditionError(
        "backward: forward has not run; it produces the output and lse that backward reads");
  }
  const Problem& problem = state.forward.spec.problem;
  const Binding bindings[] = {{kQuerySlot, "query", tensors.query, false},
                              {kKeySlot, "key", tensors.key, false},
                              {kValueSlot, "value", tensors.value, false},
                              {kResultSlot, "output", tensors.output, false},
                              {kResultLseSlot, "lse", tensors.lse, false},
                              {kOutputGradientSlot, "output_gradient", tensors.output_gradient, false},
                              {kQueryGradientSlot, "query_gradient", tensors.query_gradient, true},
                              {kKeyGradientSlot, "key_gradient", tensors.key_gradient, true},
                              {kValueGradientSlot, "value_gradient", tensors.value_gradient, true}};
  TESSERA_RETURN_IF_ERROR(CheckBindings(bindings, state.backward->program.slots, problem.dtype, MemorySpace::kHost));
  TESSERA_RETURN_IF_ERROR(CheckOutputsApart(bindings));
  TESSERA_RETURN_IF_ERROR(CheckVector("alibi_slopes", vectors.alibi_slopes, problem.score.alibi, problem.query_heads));
  TESSERA_RETURN_IF_ERROR(CheckVector("sinks", vectors.sinks, problem.score.sink, problem.query_heads));
  const size_t sinks = problem.score.sink ? problem.query_heads : 0;
  if (tensors.sink_gradient.size() != sinks) {
    return absl::InvalidArgumentError(
        absl::StrFormat("sink_gradient: %d values; the problem needs %d", tensors.sink_gradient.size(), sinks));
  }
  stream.Submit(
      [&state, bindings = std::to_array(bindings), sink_gradient = tensors.sink_gradient, vectors]() -> Status {
        const AttentionComputer computer(state.backward->spec.problem, *state.kernel, state.options.threads, vectors);
        Status status = RunPass(*state.backward, bindings, computer, state.stats, state.trace);
        if (status.ok() && !sink_gradient.empty()) status = SumSinkGradient(*state.backward, vectors, sink_gradient);
        if (!status.ok()) state.failure = status;
        return status;
      });
  return absl::OkStatus();
}

const RankProgram& Attention::program() const {
  return state_->forward.program;
}
std::string_view Attention::kernel_name() const {
  return state_->kernel->name();
}
const ExecutionStats& Attention::stats() const {
  return state_->stats;
}
const Trace& Attention::trace() const {
  return state_->trace;
}

}  // namespace tessera
