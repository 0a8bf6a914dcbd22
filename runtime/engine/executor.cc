#include "runtime/engine/executor.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <list>
#include <mutex>
#include <optional>
#include <queue>
#include <thread>

namespace tessera {
namespace {

using Clock = std::chrono::steady_clock;

// How often a waiting rank looks at its peers' health, and how long it naps between polls of its messages. Naps start
// short so that small messages stay fast and grow so that a waiting rank leaves the cores to those that compute.
constexpr auto kHealthInterval = std::chrono::milliseconds(20);
constexpr auto kLongestNap = std::chrono::microseconds(200);
constexpr int kPollsBeforeNap = 64;

int64_t Nanoseconds(Clock::duration d) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(d).count();
}

TraceLane LaneOf(const StepBody& body) {
  if (IsCompute(body)) return TraceLane::kCompute;
  return std::holds_alternative<SendStep>(body) ? TraceLane::kSend : TraceLane::kReceive;
}

// destination rows += source rows; heads of the source begin at `first_head` of the destination. fp32.
void AddRows(const TensorView& source, int64_t source_row, const TensorView& destination, int64_t destination_row,
             int first_head, int64_t count) {
  for (int64_t row = 0; row < count; ++row) {
    const auto* from = static_cast<const float*>(source.At(source_row + row, 0));
    auto* to = static_cast<float*>(destination.At(destination_row + row, first_head));
    for (int64_t i = 0; i < int64_t{source.heads} * source.width; ++i) to[i] += from[i];
  }
}

// Rounds fp32 to the destination's dtype; equal shapes, dense.
void RoundRows(const TensorView& source, const TensorView& destination) {
  const auto* from = static_cast<const float*>(source.data);
  for (int64_t i = 0; i < source.elements(); ++i) StoreFromFloat(destination.data, destination.dtype, i, from[i]);
}

}  // namespace

// The state of one run.
struct Executor::Execution {
  enum class Phase : uint8_t { kWaiting, kRunning, kDone };

  Execution(Executor& owner, const SlotTable& slot_table, const HeadVectors& head_vectors, Trace& run_trace)
      : executor(owner), slots(slot_table), vectors(head_vectors), trace(run_trace), remaining(owner.waits_for_) {
    const auto& steps = executor.program_.steps;
    phases.resize(steps.size(), Phase::kWaiting);
    for (StepId id = 0; id < static_cast<StepId>(steps.size()); ++id) {
      if (IsCompute(steps[id].body)) {
        compute_order.push_back(id);
      } else if (std::holds_alternative<ExchangeStep>(steps[id].body)) {
        exchange_order.push_back(id);
      } else if (remaining[id] == 0) {
        ready_messages.push(id);
      }
    }
  }

  bool Finished() const { return done == static_cast<int>(phases.size()); }

  void Complete(StepId id) {
    phases[id] = Phase::kDone;
    ++done;
    for (StepId next : executor.successors_[id]) {
      const StepBody& body = executor.program_.steps[next].body;
      if (--remaining[next] == 0 && !IsCompute(body) && !std::holds_alternative<ExchangeStep>(body))
        ready_messages.push(next);
    }
  }

  void Record(StepId id, Clock::time_point begin, int64_t bytes) {
    if (!executor.options_.trace) return;
    const StepBody& body = executor.program_.steps[id].body;
    trace.events.push_back({id, LaneOf(body), std::string(KindName(body)), Nanoseconds(begin - start),
                            Nanoseconds(Clock::now() - start), bytes});
  }

  // Compute steps go to the stream in program order, as soon as the messages they wait for are in: the stream keeps
  // their order among themselves, so dependencies between compute steps are not counted.
  bool SubmitCompute() {
    bool any = false;
    while (next_compute < compute_order.size() && remaining[compute_order[next_compute]] == 0) {
      const StepId id = compute_order[next_compute++];
      phases[id] = Phase::kRunning;
      ++computing;
      any = true;
      executor.compute_.Submit([this, id]() -> Status {
        if (executor.cancelled_) return absl::CancelledError("the run has failed");
        const auto begin = Clock::now();
        Status status = executor.RunCompute(executor.program_.steps[id].body, slots, vectors);
        std::lock_guard lock(mutex);
        finished_compute.push_back({id, begin, Clock::now(), status});
        compute_finished.notify_one();
        return status;
      });
    }
    return any;
  }

  Status StartTransfer(StepId id) {
    const auto begin = Clock::now();
    phases[id] = Phase::kRunning;
    TESSERA_ASSIGN_OR_RETURN(Transfer transfer, Transfer::Start(executor.program_.steps[id].body, executor.program_,
                                                                slots, executor.comms_));
    in_flight.push_back({id, begin, std::move(transfer)});
    return absl::OkStatus();
  }

  StatusOr<bool> StartTransfers() {
    bool any = false;
    // Lowest step first: the order in which the planner wants messages on the wire.
    while (!ready_messages.empty()) {
      const StepId id = ready_messages.top();
      ready_messages.pop();
      TESSERA_RETURN_IF_ERROR(StartTransfer(id));
      any = true;
    }
    while (next_exchange < exchange_order.size() && remaining[exchange_order[next_exchange]] == 0) {
      TESSERA_RETURN_IF_ERROR(StartTransfer(exchange_order[next_exchange++]));
      any = true;
    }
    return any;
  }

  StatusOr<bool> PollTransfers() {
    bool any = false;
    for (auto it = in_flight.begin(); it != in_flight.end();) {
      TESSERA_ASSIGN_OR_RETURN(const bool complete, it->transfer.Test(slots));
      if (!complete) {
        ++it;
        continue;
      }
      Record(it->id, it->begin, it->transfer.bytes());
      Complete(it->id);
      it = in_flight.erase(it);
      any = true;
    }
    return any;
  }

  StatusOr<bool> CollectCompute() {
    std::vector<FinishedCompute> finished;
    {
      std::lock_guard lock(mutex);
      finished.swap(finished_compute);
    }
    for (const FinishedCompute& f : finished) {
      TESSERA_RETURN_IF_ERROR(f.status);
      compute_time += f.end - f.begin;
      if (executor.options_.trace) {
        trace.events.push_back({f.id, TraceLane::kCompute, std::string(KindName(executor.program_.steps[f.id].body)),
                                Nanoseconds(f.begin - start), Nanoseconds(f.end - start), 0});
      }
      --computing;
      Complete(f.id);
    }
    return !finished.empty();
  }

  // The step to show to others: what computes, or the first that is not done.
  RankProgress Progress() {
    while (first_open < static_cast<StepId>(phases.size()) && phases[first_open] == Phase::kDone) ++first_open;
    return {computing > 0 ? RankState::kComputing : RankState::kWaiting, first_open};
  }

  void Nap() {
    if (++idle_polls < kPollsBeforeNap) {
      std::this_thread::yield();
      return;
    }
    const auto nap =
        std::min<Clock::duration>(kLongestNap, std::chrono::microseconds(idle_polls - kPollsBeforeNap + 1));
    std::unique_lock lock(mutex);
    compute_finished.wait_for(lock, nap, [&] { return !finished_compute.empty(); });
  }

  struct InFlight {
    StepId id;
    Clock::time_point begin;
    Transfer transfer;
  };
  struct FinishedCompute {
    StepId id;
    Clock::time_point begin, end;
    Status status;
  };

  Executor& executor;
  const SlotTable& slots;
  const HeadVectors& vectors;
  Trace& trace;
  Clock::time_point start = Clock::now();
  std::vector<int> remaining;
  std::vector<Phase> phases;
  std::vector<StepId> compute_order, exchange_order;
  size_t next_compute = 0;
  size_t next_exchange = 0;
  std::priority_queue<StepId, std::vector<StepId>, std::greater<>> ready_messages;
  std::list<InFlight> in_flight;
  int computing = 0;
  int done = 0;
  StepId first_open = 0;
  int idle_polls = 0;
  Clock::duration compute_time{0};
  Clock::duration exposed_time{0};  // the compute unit was idle while messages were under way
  std::mutex mutex;
  std::condition_variable compute_finished;
  std::vector<FinishedCompute> finished_compute;  // guarded by mutex
};

Executor::Executor(const PlanSpec& spec, const RankProgram& program, const AttentionKernel& kernel,
                   const AttentionOptions& options, Communicators& comms)
    : spec_(spec), program_(program), kernel_(kernel), options_(options), comms_(comms) {
  successors_.resize(program.steps.size());
  waits_for_.resize(program.steps.size(), 0);
  for (StepId id = 0; id < static_cast<StepId>(program.steps.size()); ++id) {
    for (StepId before : program.steps[id].after) {
      if (IsCompute(program.steps[id].body) && IsCompute(program.steps[before].body)) continue;
      successors_[before].push_back(id);
      ++waits_for_[id];
    }
  }
}

Executor::~Executor() = default;

Status Executor::Run(const SlotTable& slots, const HeadVectors& vectors, ExecutionStats& stats, Trace& trace) {
  Execution run(*this, slots, vectors, trace);
  const auto loop = [&]() -> Status {
    auto next_health = Clock::now();
    comms_.world->ReportProgress(run.Progress());
    auto checked_at = Clock::now();
    while (!run.Finished()) {
      const auto now = Clock::now();
      if (run.computing == 0 && !run.in_flight.empty()) run.exposed_time += now - checked_at;
      checked_at = now;
      TESSERA_ASSIGN_OR_RETURN(bool progress, run.CollectCompute());
      TESSERA_ASSIGN_OR_RETURN(const bool started, run.StartTransfers());
      TESSERA_ASSIGN_OR_RETURN(const bool arrived, run.PollTransfers());
      progress |= started | arrived;
      progress |= run.SubmitCompute();
      if (progress) {
        run.idle_polls = 0;
        comms_.world->ReportProgress(run.Progress());
        continue;
      }
      if (now >= next_health) {
        TESSERA_RETURN_IF_ERROR(comms_.world->Health());
        next_health = now + kHealthInterval;
      }
      run.Nap();
    }
    return absl::OkStatus();
  };
  Status status = loop();
  if (!status.ok()) {
    // Peers learn of it before the kernel that is running has noticed.
    const RankProgress last = run.Progress();
    comms_.world->ReportProgress({RankState::kFailed, last.step});
    cancelled_ = true;
    static_cast<void>(compute_.Synchronize());  // a failed step is in `status` already
    for (auto& flight : run.in_flight) abandoned_.push_back(std::move(flight.transfer));
    return Status(status.code(), absl::StrFormat("rank %d, plan step %d (%s): %s", program_.rank, last.step,
                                                 last.step < static_cast<StepId>(program_.steps.size())
                                                     ? std::string(KindName(program_.steps[last.step].body))
                                                     : "end",
                                                 std::string(status.message())));
  }
  TESSERA_RETURN_IF_ERROR(compute_.Synchronize());
  comms_.world->ReportProgress({RankState::kIdle, -1});
  stats.seconds = std::chrono::duration<double>(Clock::now() - run.start).count();
  stats.compute_seconds = std::chrono::duration<double>(run.compute_time).count();
  stats.exposed_seconds = std::chrono::duration<double>(run.exposed_time).count();
  return absl::OkStatus();
}

// What both passes tell a kernel about the problem.
template <typename AttendStepOfPass, typename Args>
void Executor::FillCommon(const AttendStepOfPass& step, const SlotTable& slots, const HeadVectors& vectors,
                          Args& args) const {
  const Problem& problem = spec_.problem;
  args.tiles = step.tiles;
  args.bands = problem.mask.bands();
  args.first_query_head = slots.slot(step.query).heads.begin;
  args.first_kv_head = slots.slot(step.key).heads.begin;
  args.group = problem.group();
  args.score.scale = problem.EffectiveScale();
  args.score.soft_cap = problem.score.soft_cap;
  if (problem.score.alibi) args.score.alibi_slopes = vectors.alibi_slopes.subspan(step.heads.begin, step.heads.size());
  args.score.position_offset = problem.key_tokens - problem.query_tokens;
  args.threads = options_.threads;
  args.cancelled = &cancelled_;
}

Status Executor::RunCompute(const StepBody& body, const SlotTable& slots, const HeadVectors& vectors) const {
  const Problem& problem = spec_.problem;
  const auto heads_of = [](std::span<const float> all, HeadRange heads) {
    return all.empty() ? all : all.subspan(heads.begin, heads.size());
  };
  if (const auto* attend = std::get_if<AttendStep>(&body)) {
    AttendArgs args;
    args.query = slots.View(attend->query);
    args.key = slots.View(attend->key);
    args.value = slots.View(attend->value);
    args.output = slots.View(attend->partial_output);
    args.lse = slots.View(attend->partial_lse);
    FillCommon(*attend, slots, vectors, args);
    return kernel_.Attend(args);
  }
  if (const auto* clear = std::get_if<ClearStep>(&body)) {
    std::memset(slots.data(clear->partial_output) + clear->rows.begin * slots.RowBytes(clear->partial_output), 0,
                clear->rows.size() * slots.RowBytes(clear->partial_output));
    const int64_t heads = slots.slot(clear->partial_lse).heads.size();
    auto* lse = reinterpret_cast<float*>(slots.data(clear->partial_lse));
    std::fill(lse + clear->rows.begin * heads, lse + clear->rows.end * heads, -std::numeric_limits<float>::infinity());
    return absl::OkStatus();
  }
  if (const auto* merge = std::get_if<MergeStep>(&body)) {
    for (const MergeRows& rows : merge->rows) {
      MergePartials(slots.View(merge->output), slots.View(merge->lse), rows.destination_row,
                    slots.View(merge->source_output), slots.View(merge->source_lse), rows.source_row, rows.count);
    }
    return absl::OkStatus();
  }
  if (const auto* finish = std::get_if<FinishStep>(&body)) {
    const HeadRange heads = slots.slot(finish->partial_output).heads;
    FinishPartials(slots.View(finish->partial_output), slots.View(finish->partial_lse),
                   problem.score.sink ? heads_of(vectors.sinks, heads) : std::span<const float>(),
                   slots.View(finish->result), slots.View(finish->result_lse), options_.threads);
    return absl::OkStatus();
  }
  if (const auto* delta = std::get_if<DeltaStep>(&body)) {
    ComputeDelta(slots.View(delta->output), slots.View(delta->output_gradient), slots.View(delta->delta),
                 options_.threads);
    return absl::OkStatus();
  }
  if (const auto* attend = std::get_if<AttendBackwardStep>(&body)) {
    AttendBackwardArgs args;
    args.query = slots.View(attend->query);
    args.key = slots.View(attend->key);
    args.value = slots.View(attend->value);
    args.output_gradient = slots.View(attend->output_gradient);
    args.lse = slots.View(attend->lse);
    args.delta = slots.View(attend->delta);
    args.query_gradient = slots.View(attend->query_gradient);
    args.key_gradient = slots.View(attend->key_gradient);
    args.value_gradient = slots.View(attend->value_gradient);
    FillCommon(*attend, slots, vectors, args);
    return kernel_.AttendBackward(args);
  }
  if (const auto* zero = std::get_if<ZeroStep>(&body)) {
    std::memset(slots.data(zero->slot) + zero->rows.begin * slots.RowBytes(zero->slot), 0,
                zero->rows.size() * slots.RowBytes(zero->slot));
    return absl::OkStatus();
  }
  if (const auto* add = std::get_if<AddStep>(&body)) {
    const int first_head = slots.slot(add->source).heads.begin - slots.slot(add->destination).heads.begin;
    for (const MergeRows& rows : add->rows) {
      AddRows(slots.View(add->source), rows.source_row, slots.View(add->destination), rows.destination_row, first_head,
              rows.count);
    }
    return absl::OkStatus();
  }
  const auto& round = std::get<RoundStep>(body);
  RoundRows(slots.View(round.source), slots.View(round.destination));
  return absl::OkStatus();
}

}  // namespace tessera
