// What every operator on GPUs has beside its plans: two communicators of the same ranks, a stream that memory belongs
// to, executions that are submitted, marked and waited for, and an error that sticks. Internal to the engine.
#pragma once

#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <string_view>

#include "collectives/communicator.h"
#include "collectives/stream_communicator.h"
#include "runtime/base/status.h"
#include "runtime/device/cuda/device.h"
#include "runtime/device/cuda/stream.h"
#include "runtime/engine/cuda/executor.h"

namespace tessera {

class CudaOperator {
 public:
  // The communicators outlive this. `longest_step`: the longest that Synchronize waits for one step of computation.
  CudaOperator(Communicator& control, StreamCommunicator& data, const CudaDevice& device,
               std::chrono::milliseconds longest_step)
      : control_(control), data_(data), device_(device), longest_step_(longest_step) {}

  // Collective over `control`: makes this ready and calls `prepare`. All ranks succeed, or all return the first error.
  // InvalidArgument when the communicators do not have the same ranks.
  Status Prepare(const std::function<Status()>& prepare, std::string_view what);

  // Calls `submit`, which submits `executor`'s program to `stream` and what belongs to it, and marks the end. The first
  // error sticks, ends the communication on this rank and tells the peers. Under capture nothing runs, so nothing is
  // marked. `executor` lives as long as this, or belongs to `owner`, which is held until the execution is over.
  Status Execute(CudaExecutor& executor, std::shared_ptr<const void> owner, const std::function<Status()>& submit,
                 CUstream_st* stream);

  // Waits for all executions and watches GPU, NCCL and peers meanwhile. An error of any of them, a peer that dies or
  // stalls, or a step of computation that takes too long (DeadlineExceeded), ends the communication on this rank and is
  // returned with the rank and the plan step that the GPU was in. It sticks.
  Status Synchronize();

  const Status& failure() const { return failure_; }
  bool has_run() const { return has_run_; }
  Communicator& control() const { return control_; }
  StreamCommunicator& data() const { return data_; }
  const CudaDevice& device() const { return device_; }
  int rank() const { return control_.rank(); }
  // Memory belongs to it: it waits for every execution, so that nothing in use is freed.
  const CudaStream& own() const { return own_; }

 private:
  struct Execution {
    CudaExecutor* executor;
    std::unique_ptr<CudaExecutor::Marks> marks;
    std::shared_ptr<const void> owner;
  };
  Status Retire();  // forgets executions that are over
  Status Wait(CudaExecutor::Position& position);
  Status Fail(const CudaExecutor& executor, StepId step, const Status& status);

  Communicator& control_;
  StreamCommunicator& data_;
  const CudaDevice device_;
  const std::chrono::milliseconds longest_step_;
  CudaStream own_;
  std::deque<Execution> executions_;  // under way, the oldest first
  bool has_run_ = false;
  Status failure_;
};

}  // namespace tessera
