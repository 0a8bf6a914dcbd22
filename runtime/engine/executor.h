// Walks any program: communication on the calling thread, compute on a stream of its own, both as their dependencies
// allow. Internal to the engine.
#pragma once

#include <atomic>
#include <chrono>
#include <vector>

#include "collectives/communicator.h"
#include "kernels/attention.h"
#include "kernels/attention_backward.h"
#include "partition/plan.h"
#include "runtime/device/stream.h"
#include "runtime/engine/attention.h"
#include "runtime/engine/slots.h"
#include "runtime/engine/trace.h"
#include "runtime/engine/transfer.h"

namespace tessera {

class Executor {
 public:
  // All references outlive the executor.
  Executor(const PlanSpec& spec, const RankProgram& program, const AttentionKernel& kernel,
           const AttentionOptions& options, Communicators& comms);
  ~Executor();

  // Runs every step once over the bound slots. On error nothing of the program is still computing; messages in flight
  // are kept, and their buffers must be, until the communicator is gone.
  Status Run(const SlotTable& slots, const HeadVectors& vectors, ExecutionStats& stats, Trace& trace);

 private:
  struct Execution;
  template <typename AttendStepOfPass, typename Args>
  void FillCommon(const AttendStepOfPass& step, const SlotTable& slots, const HeadVectors& vectors, Args& args) const;
  Status RunCompute(const StepBody& body, const SlotTable& slots, const HeadVectors& vectors) const;

  const PlanSpec& spec_;
  const RankProgram& program_;
  const AttentionKernel& kernel_;
  const AttentionOptions& options_;
  Communicators& comms_;
  std::vector<std::vector<StepId>> successors_;  // per step: the steps that wait for it
  std::vector<int> waits_for_;                   // per step: dependencies counted at start
  std::atomic<bool> cancelled_ = false;          // a run has failed: queued compute steps return at once
  CpuStream compute_;
  std::vector<Transfer> abandoned_;  // in flight when an error ended the run
};

}  // namespace tessera
