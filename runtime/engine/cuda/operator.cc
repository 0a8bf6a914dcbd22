#include "runtime/engine/cuda/operator.h"

#include <chrono>
#include <thread>
#include <utility>

#include "collectives/agreement.h"
#include "runtime/device/cuda/graph.h"

namespace tessera {
namespace {

using Clock = std::chrono::steady_clock;

// How often a waiting rank looks at the GPU, and how often at its peers.
constexpr auto kPollInterval = std::chrono::microseconds(50);
constexpr auto kHealthInterval = std::chrono::milliseconds(20);

}  // namespace

Status CudaOperator::Prepare(const std::function<Status()>& prepare, std::string_view what) {
  const auto local = [&]() -> Status {
    if (data_.size() != control_.size() || data_.rank() != control_.rank()) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "the data communicator has this process as rank %d of %d, the control communicator as rank %d of %d",
          data_.rank(), data_.size(), control_.rank(), control_.size()));
    }
    TESSERA_ASSIGN_OR_RETURN(own_, CudaStream::Create(device_));
    return prepare();
  };
  return AgreeOnStatus(control_, local(), what);
}

Status CudaOperator::Retire() {
  while (!executions_.empty()) {
    Execution& oldest = executions_.front();
    TESSERA_ASSIGN_OR_RETURN(const bool over, oldest.marks->finish.Done());
    if (!over) break;
    oldest.executor->GiveBack(std::move(oldest.marks));
    executions_.pop_front();
  }
  return absl::OkStatus();
}

Status CudaOperator::Execute(CudaExecutor& executor, std::shared_ptr<const void> owner,
                             const std::function<Status()>& submit, CUstream_st* stream) {
  bool capturing = false;
  const auto run = [&]() -> Status {
    TESSERA_RETURN_IF_ERROR(Retire());
    TESSERA_ASSIGN_OR_RETURN(capturing, IsCapturing(stream));
    TESSERA_RETURN_IF_ERROR(submit());
    std::unique_ptr<CudaExecutor::Marks> marks = executor.TakeMarks();
    if (capturing) {
      executor.GiveBack(std::move(marks));
      return absl::OkStatus();
    }
    TESSERA_RETURN_IF_ERROR(marks->finish.Record(stream));
    TESSERA_RETURN_IF_ERROR(marks->finish.MakeWait(own_.handle()));
    executions_.push_back({&executor, std::move(marks), std::move(owner)});
    has_run_ = true;
    return absl::OkStatus();
  };
  failure_ = run();
  // A failed capture has moved no message: peers learn of it from the caller.
  if (!failure_.ok() && !capturing) failure_ = Fail(executor, executor.submitting(), failure_);
  return failure_;
}

// Executions may be many, one per layer; the oldest is the one that the GPU is in.
Status CudaOperator::Wait(CudaExecutor::Position& position) {
  auto next_health = Clock::now(), moved = next_health;
  const CudaExecutor::Marks* reported = nullptr;
  for (;;) {
    TESSERA_RETURN_IF_ERROR(Retire());
    if (executions_.empty()) return absl::OkStatus();
    const Execution& oldest = executions_.front();
    const CudaExecutor::Position before = position;
    TESSERA_ASSIGN_OR_RETURN(position, oldest.executor->Where(*oldest.marks));
    // Every report counts as progress. A rank that has nothing new to say must be seen to stand still, or peers that
    // never come would be waited for without end.
    if (reported != oldest.marks.get() || before != position) {
      reported = oldest.marks.get();
      moved = Clock::now();
      // What follows the program are sums over ranks.
      const bool waits = position.waits || position.done;
      control_.ReportProgress({waits ? RankState::kWaiting : RankState::kComputing, position.step});
    }
    if (const auto now = Clock::now(); now >= next_health) {
      TESSERA_RETURN_IF_ERROR(data_.Poll());
      TESSERA_RETURN_IF_ERROR(control_.Health());
      // While a rank waits, peers are judged by Health; a rank that computes is never taken for one that stands still.
      if (!position.waits && now - moved > longest_step_) {
        return absl::DeadlineExceededError(absl::StrFormat("the GPU has computed for %.1f s without ending this step",
                                                           std::chrono::duration<double>(now - moved).count()));
      }
      next_health = now + kHealthInterval;
    }
    std::this_thread::sleep_for(kPollInterval);
  }
}

Status CudaOperator::Fail(const CudaExecutor& executor, StepId step, const Status& status) {
  control_.ReportProgress({RankState::kFailed, step});
  const RankProgram& program = executor.program();
  const std::string where = step == kNone ? "end" : std::string(KindName(program.steps[step].body));
  Status named(status.code(), absl::StrFormat("rank %d, plan step %d (%s): %s", program.rank, step, where,
                                              std::string(status.message())));
  // By its payload a peer's failure is told from one of this rank's own.
  status.ForEachPayload([&](absl::string_view type, const absl::Cord& value) { named.SetPayload(type, value); });
  data_.Abort(named);
  return named;
}

Status CudaOperator::Synchronize() {
  if (!failure_.ok() || executions_.empty()) return failure_;
  CudaExecutor::Position position;
  const Status status = Wait(position);
  if (!status.ok()) return failure_ = Fail(*executions_.front().executor, position.step, status);
  control_.ReportProgress({RankState::kIdle, -1});
  return failure_;
}

}  // namespace tessera
