#include "runtime/engine/decode.h"

#include <utility>

#include "collectives/agreement.h"
#include "kernels/decode_check.h"
#include "runtime/engine/decode_common.h"
#include "runtime/engine/executor.h"
#include "runtime/engine/slots.h"
#include "runtime/engine/transfer.h"

namespace tessera {
namespace {

// A plan for one number of query rows, ready to run.
struct ReadyPlan {
  DecodeSpec spec;
  RankProgram program;
  SlotTable slots;
  std::unique_ptr<Executor> executor;
};

DecodeArgs ArgsOf(const AttendCacheStep& attend, const SlotTable& slots, const DecodeSpec& spec, int rank,
                  const DecodeOptions& options, const CacheLayer& cache, std::span<const DecodeSequence> sequences) {
  DecodeArgs args;
  args.query = slots.View(attend.query);
  args.output = slots.View(attend.partial_output);
  args.lse = slots.View(attend.partial_lse);
  args.cache = cache;
  args.sequences = sequences;
  args.first_query_head = slots.slot(attend.query).heads.begin;
  args.first_kv_head = KvHeadsOf(spec, rank).begin;
  args.group = spec.heads / spec.kv_heads;
  args.scale = options.scale;
  args.soft_cap = options.soft_cap;
  args.threads = options.threads;
  return args;
}

class DecodeComputer final : public StepComputer {
 public:
  DecodeComputer(const DecodeKernel& kernel, const DecodeArgs& args) : kernel_(kernel), args_(args) {}

  Status Compute(const StepBody& body, const SlotTable& slots, const std::atomic<bool>& cancelled) const override {
    if (!std::holds_alternative<AttendCacheStep>(body)) return ComputeCommonStep(body, slots);
    DecodeArgs args = args_;
    args.cancelled = &cancelled;
    return kernel_.Decode(args);
  }

 private:
  const DecodeKernel& kernel_;
  const DecodeArgs& args_;  // of the program's one attend_cache step
};

}  // namespace

struct DecodeAttention::State {
  DecodeSpec spec;  // rows: of the last Run
  DecodeOptions options;
  const DecodeKernel* kernel = nullptr;
  Communicators comms;
  PlansByRows<ReadyPlan> plans;
  ExecutionStats stats;
  Status failure;  // the first error after messages began to move; sticks

  StatusOr<std::shared_ptr<ReadyPlan>> PlanFor(int64_t rows) {
    if (std::shared_ptr<ReadyPlan> known = plans.Find(rows)) return known;
    auto plan = std::make_shared<ReadyPlan>();
    plan->spec = spec;
    plan->spec.rows = rows;
    TESSERA_RETURN_IF_ERROR(Validate(plan->spec));
    plan->program = BuildDecodeProgram(plan->spec, comms.world->rank());
    TESSERA_ASSIGN_OR_RETURN(plan->slots, SlotTable::Allocate(plan->program, spec.dtype));
    // Nothing overlaps in a decode step, and on the caller's thread the kernel uses the OpenMP team that its other
    // operators use.
    plan->executor = std::make_unique<Executor>(plan->program, comms, /*compute=*/nullptr, /*tracing=*/false);
    return plans.Add(rows, std::move(plan));
  }

  // A layer's cache decides between kernels that differ in where the values are.
  Status ChooseKernel(bool value_in_key) {
    const DecodeTraits traits{spec.dtype, spec.qk_width, spec.v_width, value_in_key};
    if (kernel != nullptr && kernel->WhyNot(traits).empty() && value_in_key == chosen_for_value_in_key) {
      return absl::OkStatus();
    }
    TESSERA_ASSIGN_OR_RETURN(kernel, FindDecodeKernel(traits, options.kernel));
    chosen_for_value_in_key = value_in_key;
    return absl::OkStatus();
  }
  bool chosen_for_value_in_key = false;
};

DecodeAttention::DecodeAttention(std::unique_ptr<State> state) : state_(std::move(state)) {}
DecodeAttention::~DecodeAttention() {
  if (state_ == nullptr || state_->failure.ok()) return;
  for (const auto& [rows, plan] : state_->plans) KeepForGood(std::move(plan->slots));
}

StatusOr<std::unique_ptr<DecodeAttention>> DecodeAttention::Create(Communicator& comm, const DecodeSpec& spec,
                                                                   const DecodeOptions& options) {
  TESSERA_RETURN_IF_ERROR(AgreeOnDecode(comm, spec, options.scale, options.soft_cap));
  auto state = std::make_unique<State>();
  state->spec = spec;
  state->spec.rows = 0;
  state->options = options;
  // Kernels differ between machines: what fails on one rank must fail on all.
  const Status local = [&]() -> Status {
    if (options.threads < 1) {
      return absl::InvalidArgumentError(
          absl::StrFormat("options.threads is %d; it must be at least 1", options.threads));
    }
    return state->ChooseKernel(spec.kv_heads == 1 && spec.v_width < spec.qk_width);
  }();
  TESSERA_RETURN_IF_ERROR(AgreeOnStatus(comm, local, "preparing to decode"));
  const RankProgram program = BuildDecodeProgram(state->spec, comm.rank());
  TESSERA_ASSIGN_OR_RETURN(state->comms, Connect(comm, program.groups));
  TESSERA_RETURN_IF_ERROR(state->PlanFor(0).status());
  return std::unique_ptr<DecodeAttention>(new DecodeAttention(std::move(state)));
}

Status DecodeAttention::Run(const ConstTensorView& query, const CacheLayer& cache,
                            std::span<const DecodeSequence> sequences, const TensorView& output,
                            const TensorView& lse) {
  State& state = *state_;
  TESSERA_RETURN_IF_ERROR(state.failure);
  TESSERA_ASSIGN_OR_RETURN(const std::shared_ptr<ReadyPlan> plan, state.PlanFor(query.rows));
  TESSERA_RETURN_IF_ERROR(CheckDecodeTensors(plan->program, state.spec.dtype, query, output, lse, MemorySpace::kHost));
  plan->slots.Bind(kDecodeQuerySlot, const_cast<void*>(query.data));  // plans never write to inputs: see Verify
  plan->slots.Bind(kDecodeOutputSlot, output.data);
  plan->slots.Bind(kDecodeLseSlot, lse.data);
  DecodeArgs args;
  if (const AttendCacheStep* attend = AttendOf(plan->program)) {
    const int rank = state.comms.world->rank();
    TESSERA_RETURN_IF_ERROR(CheckCache(cache, state.spec, KvHeadsOf(state.spec, rank).size()));
    int64_t covered = 0;
    for (const DecodeSequence& sequence : sequences) covered += static_cast<int64_t>(sequence.visible.size());
    TESSERA_RETURN_IF_ERROR(CheckRowsCovered(covered, query.rows));
    args = ArgsOf(*attend, plan->slots, state.spec, rank, state.options, cache, sequences);
    TESSERA_RETURN_IF_ERROR(CheckDecodeArgs(args));
    TESSERA_RETURN_IF_ERROR(state.ChooseKernel(TraitsOf(args).value_in_key));
  }
  const Traffic before = state.comms.traffic();
  Trace trace;
  const DecodeComputer computer(*state.kernel, args);
  if (const Status status = plan->executor->Run(plan->slots, computer, state.stats, trace); !status.ok()) {
    return state.failure = status;
  }
  state.stats.traffic = Since(state.comms.traffic(), before);
  state.stats.slot_bytes = plan->program.SlotBytes();
  return absl::OkStatus();
}

const DecodeSpec& DecodeAttention::spec() const {
  return state_->plans.front().spec;
}
std::string_view DecodeAttention::kernel_name() const {
  return state_->kernel->name();
}
const ExecutionStats& DecodeAttention::stats() const {
  return state_->stats;
}
const RankProgram& DecodeAttention::program() const {
  return state_->plans.front().program;
}

}  // namespace tessera
