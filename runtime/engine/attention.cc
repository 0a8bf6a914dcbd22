#include "runtime/engine/attention.h"

#include <cmath>
#include <cstring>
#include <utility>

#include "partition/planner.h"
#include "runtime/engine/executor.h"
#include "runtime/engine/slots.h"
#include "runtime/engine/transfer.h"

namespace tessera {

struct Attention::State {
  PlanSpec spec;
  RankProgram program;
  AttentionOptions options;
  const AttentionKernel* kernel = nullptr;
  Communicators comms;
  SlotTable slots;
  std::unique_ptr<Executor> executor;
  HostBuffer dense[kExternalSlots];  // copies of tensors that are not dense, made when first needed
  ExecutionStats stats;
  Trace trace;
  Status failure;  // the first error; sticks
};

namespace {

Traffic TotalTraffic(const Communicators& comms) {
  Traffic total = comms.world->traffic();
  for (const auto& group : comms.groups) {
    if (group == nullptr) continue;
    const Traffic traffic = group->traffic();
    total.bytes_sent += traffic.bytes_sent;
    total.bytes_received += traffic.bytes_received;
    total.messages_sent += traffic.messages_sent;
    total.messages_received += traffic.messages_received;
  }
  return total;
}

Traffic Since(const Traffic& now, const Traffic& before) {
  return {now.bytes_sent - before.bytes_sent, now.bytes_received - before.bytes_received,
          now.messages_sent - before.messages_sent, now.messages_received - before.messages_received};
}

Status CheckTensor(std::string_view name, const ConstTensorView& view, const Slot& slot, DType dtype) {
  const auto reject = [&](const char* field, const auto& value, const auto& expected) {
    return absl::InvalidArgumentError(
        absl::StrCat(std::string(name), ": ", field, " is ", value, "; this rank's plan needs ", expected));
  };
  if (view.rows != slot.rows) return reject("rows", view.rows, slot.rows);
  if (view.heads != slot.heads.size()) return reject("heads", view.heads, slot.heads.size());
  if (view.width != slot.width) return reject("width", view.width, slot.width);
  if (view.dtype != dtype) return reject("dtype", std::string(Name(view.dtype)), std::string(Name(dtype)));
  if (view.space != MemorySpace::kHost) return reject("memory space", "device", "host");
  if (view.data == nullptr && view.elements() > 0) return reject("data", "null", "memory");
  return absl::OkStatus();
}

Status CheckVector(std::string_view name, std::span<const float> values, bool needed, int heads) {
  const size_t expected = needed ? heads : 0;
  if (values.size() != expected) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: %d values; the problem needs %d", std::string(name), values.size(), expected));
  }
  for (float value : values) {
    if (std::isnan(value))
      return absl::InvalidArgumentError(absl::StrFormat("%s: a value is NaN; it must be a number", std::string(name)));
  }
  return absl::OkStatus();
}

// Copies [rows, heads, width] between views of equal shape and dtype, any strides.
void CopyTensor(const ConstTensorView& from, const TensorView& to) {
  const size_t run = from.width * SizeInBytes(from.dtype);
  for (int64_t row = 0; row < from.rows; ++row) {
    for (int head = 0; head < from.heads; ++head) std::memcpy(to.At(row, head), from.At(row, head), run);
  }
}

}  // namespace

Attention::Attention(std::unique_ptr<State> state) : state_(std::move(state)) {}
Attention::~Attention() = default;

StatusOr<std::unique_ptr<Attention>> Attention::Create(Communicator& comm, const PlanSpec& spec,
                                                       const AttentionOptions& options) {
  TESSERA_RETURN_IF_ERROR(AgreeOnHash(comm, Hash(spec.problem), "problem"));
  TESSERA_RETURN_IF_ERROR(AgreeOnHash(comm, Hash(spec), "plan"));
  // From here on every rank sees the same spec, so these checks give the same answer everywhere.
  TESSERA_RETURN_IF_ERROR(Validate(spec.problem));
  if (comm.size() != spec.mesh.size()) {
    return absl::InvalidArgumentError(absl::StrFormat("the plan is for %d ranks (%s) and the communicator has %d",
                                                      spec.mesh.size(), spec.mesh.ToString(), comm.size()));
  }
  auto state = std::make_unique<State>();
  state->spec = spec;
  state->options = options;
  state->comms.world = &comm;
  state->trace.rank = comm.rank();
  // Kernels and memory differ between machines: what fails on one rank must fail on all.
  const Status local = [&]() -> Status {
    if (options.threads < 1) {
      return absl::InvalidArgumentError(
          absl::StrFormat("options.threads is %d; it must be at least 1", options.threads));
    }
    const AttentionTraits traits{spec.problem.dtype, spec.problem.qk_width, spec.problem.v_width};
    TESSERA_ASSIGN_OR_RETURN(state->kernel, FindAttentionKernel(traits, options.kernel));
    state->program = BuildRankProgram(state->spec, comm.rank());
    TESSERA_ASSIGN_OR_RETURN(state->slots, SlotTable::Allocate(state->program, spec.problem.dtype));
    return absl::OkStatus();
  }();
  const Status everywhere = AgreeOnHash(comm, local.ok() ? 1 : 0, "readiness to execute the plan");
  if (!local.ok()) return local;
  TESSERA_RETURN_IF_ERROR(everywhere);
  for (const std::vector<int>& group : state->program.groups) {
    const auto position = std::find(group.begin(), group.end(), comm.rank()) - group.begin();
    TESSERA_ASSIGN_OR_RETURN(auto part, comm.Split(group[0], static_cast<int>(position)));
    state->comms.groups.push_back(std::move(part));
  }
  state->executor =
      std::make_unique<Executor>(state->spec, state->program, *state->kernel, state->options, state->comms);
  return std::unique_ptr<Attention>(new Attention(std::move(state)));
}

Status Attention::Forward(const ConstTensorView& query, const ConstTensorView& key, const ConstTensorView& value,
                          const TensorView& output, const TensorView& lse, const HeadVectors& vectors,
                          CpuStream& stream) {
  State& state = *state_;
  TESSERA_RETURN_IF_ERROR(state.failure);
  const Problem& problem = state.spec.problem;
  const std::vector<Slot>& slots = state.program.slots;
  TESSERA_RETURN_IF_ERROR(CheckTensor("query", query, slots[kQuerySlot], problem.dtype));
  TESSERA_RETURN_IF_ERROR(CheckTensor("key", key, slots[kKeySlot], problem.dtype));
  TESSERA_RETURN_IF_ERROR(CheckTensor("value", value, slots[kValueSlot], problem.dtype));
  TESSERA_RETURN_IF_ERROR(CheckTensor("output", output, slots[kResultSlot], problem.dtype));
  TESSERA_RETURN_IF_ERROR(CheckTensor("lse", lse, slots[kResultLseSlot], DType::kFloat32));
  TESSERA_RETURN_IF_ERROR(CheckVector("alibi_slopes", vectors.alibi_slopes, problem.score.alibi, problem.query_heads));
  TESSERA_RETURN_IF_ERROR(CheckVector("sinks", vectors.sinks, problem.score.sink, problem.query_heads));

  stream.Submit([&state, query, key, value, output, lse, vectors]() -> Status {
    const auto dense = [&](SlotId id, const ConstTensorView& view) -> StatusOr<TensorView> {
      if (state.dense[id].bytes() < view.bytes()) {
        TESSERA_ASSIGN_OR_RETURN(state.dense[id],
                                 HostBuffer::Allocate(view.bytes(), "a dense copy of a strided tensor"));
      }
      return TensorView::Dense(state.dense[id].data(), view.dtype, view.rows, view.heads, view.width);
    };
    const auto run = [&]() -> Status {
      for (const auto& [id, view] : {std::pair{kQuerySlot, query}, {kKeySlot, key}, {kValueSlot, value}}) {
        if (view.IsDense()) {
          state.slots.BindExternal(id, const_cast<void*>(view.data));  // plans never write to input slots: see Verify
        } else {
          TESSERA_ASSIGN_OR_RETURN(const TensorView copy, dense(id, view));
          CopyTensor(view, copy);
          state.slots.BindExternal(id, copy.data);
        }
      }
      TensorView result = output;
      TensorView result_lse = lse;
      if (!output.IsDense()) {
        TESSERA_ASSIGN_OR_RETURN(result, dense(kResultSlot, output));
      }
      if (!lse.IsDense()) {
        TESSERA_ASSIGN_OR_RETURN(result_lse, dense(kResultLseSlot, lse));
      }
      state.slots.BindExternal(kResultSlot, result.data);
      state.slots.BindExternal(kResultLseSlot, result_lse.data);
      const Traffic before = TotalTraffic(state.comms);
      state.trace.events.clear();
      TESSERA_RETURN_IF_ERROR(state.executor->Run(state.slots, vectors, state.stats, state.trace));
      state.stats.traffic = Since(TotalTraffic(state.comms), before);
      state.stats.slot_bytes = state.program.SlotBytes();
      if (!output.IsDense()) CopyTensor(result, output);
      if (!lse.IsDense()) CopyTensor(result_lse, lse);
      return absl::OkStatus();
    };
    Status status = run();
    if (!status.ok()) state.failure = status;
    return status;
  });
  return absl::OkStatus();
}

const RankProgram& Attention::program() const {
  return state_->program;
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
