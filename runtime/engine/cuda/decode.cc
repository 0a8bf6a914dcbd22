#include "runtime/engine/cuda/decode.h"

#include <optional>
#include <utility>

#include "kernels/decode_check.h"
#include "partition/message_rounds.h"
#include "runtime/device/cuda/buffer.h"
#include "runtime/device/cuda/graph.h"
#include "runtime/engine/bindings.h"
#include "runtime/engine/cuda/decode_computer.h"
#include "runtime/engine/cuda/operator.h"
#include "runtime/engine/decode_common.h"

namespace tessera {
namespace {

// As DeviceBuffer aligns.
constexpr int64_t kSlotAlignment = 256;

int64_t Padded(int64_t bytes) {
  return (bytes + kSlotAlignment - 1) / kSlotAlignment * kSlotAlignment;
}

int64_t MemoryFor(const RankProgram& program) {
  int64_t bytes = 0;
  for (const Slot& slot : program.slots) bytes += slot.external ? 0 : Padded(slot.bytes());
  return bytes;
}

// A plan for one number of query rows, ready to run.
struct ReadyPlan {
  DecodeSpec spec;
  RankProgram program;
  SlotTable slots;
  std::optional<CudaExecutor> executor;
};

DecodeStepLimits LimitsOf(const CudaDecodeOptions& options) {
  DecodeStepLimits limits;
  limits.sequences = options.max_sequences;
  limits.rows_per_sequence = options.max_rows_per_sequence;
  limits.rows =
      options.max_rows != 0 ? options.max_rows : int64_t{options.max_sequences} * options.max_rows_per_sequence;
  limits.pages = options.max_pages;
  limits.page_tokens = options.page_tokens;
  return limits;
}

bool ValueInKey(const CacheLayer& cache) {
  DecodeArgs args;
  args.cache = cache;
  return TraitsOf(args).value_in_key;
}

}  // namespace

struct CudaDecodeAttention::State {
  State(Communicator& control, StreamCommunicator& data, const CudaDevice& device,
        std::chrono::milliseconds longest_step)
      : gpu(control, data, device, longest_step) {}

  Status Prepare(const CudaDecodeOptions& options);
  StatusOr<std::shared_ptr<ReadyPlan>> PlanFor(int64_t rows, CUstream_st* stream);
  Status CheckStep(const CacheLayer& cache, const CudaDecodeStep& step, int64_t rows) const;

  CudaOperator gpu;
  DecodeSpec spec;  // without rows
  bool value_in_key = false;
  DecodeStepLimits limits;
  // Of every plan: executions follow each other, so one of any number of rows has the slots of the largest to itself,
  // and a plan that is made later, or dropped while a graph knows it, needs no memory of its own.
  DeviceBuffer slots;
  std::optional<CudaDecodeWork> work;
  PlansByRows<ReadyPlan> plans;
};

Status CudaDecodeAttention::State::Prepare(const CudaDecodeOptions& options) {
  value_in_key = options.value_in_key;
  limits = LimitsOf(options);
  TESSERA_RETURN_IF_ERROR(Validate(limits));
  DecodeSpec largest = spec;
  largest.rows = limits.rows;
  TESSERA_RETURN_IF_ERROR(Validate(largest));
  const RankProgram program = BuildDecodeProgram(largest, gpu.rank());
  const AttendCacheStep* attend = AttendOf(program);
  const HeadRange heads = attend == nullptr ? HeadRange{} : attend->heads;
  TESSERA_ASSIGN_OR_RETURN(work,
                           CudaDecodeWork::Create(spec, gpu.rank(), heads, options, limits, gpu.device(), gpu.own()));
  TESSERA_ASSIGN_OR_RETURN(slots, DeviceBuffer::Allocate(gpu.device(), MemoryFor(program),
                                                         "the slots of decode attention", gpu.own().handle()));
  TESSERA_RETURN_IF_ERROR(gpu.own().Synchronize("preparing the memory of decode attention"));
  return PlanFor(0, nullptr).status();
}

StatusOr<std::shared_ptr<ReadyPlan>> CudaDecodeAttention::State::PlanFor(int64_t rows, CUstream_st* stream) {
  if (std::shared_ptr<ReadyPlan> known = plans.Find(rows)) return known;
  if (rows > limits.rows) {
    return absl::InvalidArgumentError(
        absl::StrFormat("query: rows is %d; max_rows of this attention is %d", rows, limits.rows));
  }
  if (stream != nullptr) {
    TESSERA_ASSIGN_OR_RETURN(const bool capturing, IsCapturing(stream));
    if (capturing) {
      return absl::FailedPreconditionError(
          absl::StrFormat("there is no plan for %d query rows, and none is made while a graph is captured: run the "
                          "step once before",
                          rows));
    }
  }
  auto plan = std::make_shared<ReadyPlan>();
  plan->spec = spec;
  plan->spec.rows = rows;
  TESSERA_RETURN_IF_ERROR(Validate(plan->spec));
  DecodePlan all = BuildDecodePlan(plan->spec);
  TESSERA_ASSIGN_OR_RETURN(const auto rounds, MessageRounds(all));
  plan->program = std::move(all.programs[gpu.rank()]);
  plan->slots = SlotTable::Unbound(plan->program, spec.dtype, MemorySpace::kDevice);
  std::byte* next = slots.data();
  for (SlotId id = 0; id < static_cast<SlotId>(plan->program.slots.size()); ++id) {
    const Slot& slot = plan->program.slots[id];
    if (slot.external) continue;
    plan->slots.Bind(id, next);
    next += Padded(slot.bytes());
  }
  TESSERA_ASSIGN_OR_RETURN(plan->executor,
                           CudaExecutor::Create(plan->program, rounds[gpu.rank()], gpu.device(), gpu.data()));
  return plans.Add(rows, std::move(plan));
}

Status CudaDecodeAttention::State::CheckStep(const CacheLayer& cache, const CudaDecodeStep& step, int64_t rows) const {
  TESSERA_RETURN_IF_ERROR(CheckCache(cache, spec, KvHeadsOf(spec, gpu.rank()).size()));
  if (cache.page_tokens != limits.page_tokens) {
    return absl::InvalidArgumentError(absl::StrCat("cache: page_tokens is ", cache.page_tokens,
                                                   "; page_tokens of this attention is ", limits.page_tokens));
  }
  if (value_in_key && !ValueInKey(cache)) {
    return absl::InvalidArgumentError(
        "cache: values are not the first columns of the keys; value_in_key of this attention is set");
  }
  const DecodeStepLimits& made_for = step.limits();
  if (made_for.sequences > limits.sequences || made_for.rows_per_sequence > limits.rows_per_sequence ||
      made_for.page_tokens != limits.page_tokens) {
    return absl::InvalidArgumentError("step: it was made by another attention, for more than this one may hold");
  }
  return CheckRowsCovered(step.rows(), rows);
}

CudaDecodeAttention::CudaDecodeAttention(std::unique_ptr<State> state) : state_(std::move(state)) {}
CudaDecodeAttention::~CudaDecodeAttention() = default;

StatusOr<std::unique_ptr<CudaDecodeAttention>> CudaDecodeAttention::Create(Communicator& control,
                                                                           StreamCommunicator& data,
                                                                           const CudaDevice& device,
                                                                           const DecodeSpec& spec,
                                                                           const CudaDecodeOptions& options) {
  TESSERA_RETURN_IF_ERROR(AgreeOnDecode(control, spec, options.scale, options.soft_cap));
  auto state = std::make_unique<State>(control, data, device, options.longest_step);
  state->spec = spec;
  state->spec.rows = 0;
  TESSERA_RETURN_IF_ERROR(state->gpu.Prepare([&] { return state->Prepare(options); }, "preparing to decode"));
  return std::unique_ptr<CudaDecodeAttention>(new CudaDecodeAttention(std::move(state)));
}

StatusOr<CudaDecodeStep> CudaDecodeAttention::MakeStep() const {
  return CudaDecodeStep::Create(state_->gpu.device(), state_->gpu.own(), state_->limits);
}

Status CudaDecodeAttention::Run(const ConstTensorView& query, const CacheLayer& cache, const CudaDecodeStep& step,
                                const TensorView& output, const TensorView& lse, CUstream_st* stream) {
  State& state = *state_;
  TESSERA_RETURN_IF_ERROR(state.gpu.failure());
  TESSERA_ASSIGN_OR_RETURN(const std::shared_ptr<ReadyPlan> plan, state.PlanFor(query.rows, stream));
  const RankProgram& program = plan->program;
  TESSERA_RETURN_IF_ERROR(CheckDecodeTensors(program, state.spec.dtype, query, output, lse, MemorySpace::kDevice));
  if (AttendOf(program) != nullptr) TESSERA_RETURN_IF_ERROR(state.CheckStep(cache, step, query.rows));
  plan->slots.Bind(kDecodeQuerySlot, Writable(query).data);
  plan->slots.Bind(kDecodeOutputSlot, output.data);
  plan->slots.Bind(kDecodeLseSlot, lse.data);
  const CudaDecodeComputer computer(program, *state.work, cache, step);
  return state.gpu.Execute(
      *plan->executor, plan, [&] { return plan->executor->Submit(plan->slots, computer, stream); }, stream);
}

Status CudaDecodeAttention::Synchronize() {
  return state_->gpu.Synchronize();
}

const DecodeSpec& CudaDecodeAttention::spec() const {
  return state_->plans.front().spec;
}
std::string_view CudaDecodeAttention::kernel_name() const {
  return state_->work->kernel_name();
}
const RankProgram& CudaDecodeAttention::program() const {
  return state_->plans.front().program;
}
int64_t CudaDecodeAttention::memory_bytes() const {
  return state_->slots.bytes() + state_->work->workspace_bytes();
}

}  // namespace tessera
