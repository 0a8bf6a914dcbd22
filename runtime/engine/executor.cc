#include "runtime/engine/executor.h"

#include <algorithm>
#include <list>
#include <mutex>
#include <optional>
#include <queue>
#include <thread>

#include "runtime/base/elapsed.h"

namespace tessera {
namespace {

using Clock = std::chrono::steady_clock;

// How often a waiting rank looks at its peers' health, and how long it naps between polls of its messages. Naps start
// short so that small messages stay fast and grow so that a waiting rank leaves the cores to those that compute. With no
// message under way there is nothing to poll: 5,000 wakes a second would take 2 % of a core that computes.
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

}  // namespace

// The state of one run.
struct Executor::Execution {
  enum class Phase : uint8_t { kWaiting, kRunning, kDone };

  Execution(Executor& owner, const SlotTable& slot_table, const StepComputer& step_computer, Trace& run_trace)
      : executor(owner), slots(slot_table), computer(step_computer), trace(run_trace), remaining(owner.waits_for_) {
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
    if (!executor.tracing_) return;
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
      if (executor.compute_ == nullptr) {
        executor.comms_.world->ReportProgress(Progress());
        static_cast<void>(Compute(id));  // collected with the status of the step
        break;
      }
      executor.compute_->Submit([this, id] { return Compute(id); });
    }
    return any;
  }

  Status Compute(StepId id) {
    if (executor.cancelled_) return absl::CancelledError("the run has failed");
    const auto begin = Clock::now();
    Status status = computer.Compute(executor.program_.steps[id].body, slots, executor.cancelled_);
    std::lock_guard lock(mutex);
    finished_compute.push_back({id, begin, Clock::now(), status});
    compute_finished.notify_one();
    return status;
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
      if (executor.tracing_) {
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
    Clock::duration nap = kHealthInterval;
    if (!in_flight.empty()) {
      nap = std::min<Clock::duration>(kLongestNap, std::chrono::microseconds(idle_polls - kPollsBeforeNap + 1));
    }
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
  const StepComputer& computer;
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

Executor::Executor(const RankProgram& program, Communicators& comms, CpuStream* compute, bool tracing)
    : program_(program), comms_(comms), compute_(compute), tracing_(tracing) {
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

Status Executor::Run(const SlotTable& slots, const StepComputer& computer, ExecutionStats& stats, Trace& trace) {
  Execution run(*this, slots, computer, trace);
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
    if (compute_ != nullptr) static_cast<void>(compute_->Synchronize());  // a failed step is in `status` already
    for (auto& flight : run.in_flight) abandoned_.push_back(std::move(flight.transfer));
    return Status(status.code(), absl::StrFormat("rank %d, plan step %d (%s): %s", program_.rank, last.step,
                                                 last.step < static_cast<StepId>(program_.steps.size())
                                                     ? std::string(KindName(program_.steps[last.step].body))
                                                     : "end",
                                                 std::string(status.message())));
  }
  if (compute_ != nullptr) TESSERA_RETURN_IF_ERROR(compute_->Synchronize());
  comms_.world->ReportProgress({RankState::kIdle, -1});
  stats.seconds = SecondsSince(run.start);
  stats.compute_seconds = std::chrono::duration<double>(run.compute_time).count();
  stats.exposed_seconds = std::chrono::duration<double>(run.exposed_time).count();
  return absl::OkStatus();
}

}  // namespace tessera
