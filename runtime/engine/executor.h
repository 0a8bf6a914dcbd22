// Walks any program: communication on the calling thread, compute on a stream of its own, both as their dependencies
// allow. What a compute step computes is the business of a StepComputer. Internal to the engine.
#pragma once

#include <atomic>
#include <chrono>
#include <vector>

#include "collectives/communicator.h"
#include "partition/plan.h"
#include "runtime/device/stream.h"
#include "runtime/engine/attention.h"
#include "runtime/engine/slots.h"
#include "runtime/engine/step_computer.h"
#include "runtime/engine/trace.h"
#include "runtime/engine/transfer.h"

namespace tessera {

class Executor {
 public:
  // Everything outlives the executor. Without a compute stream, compute steps run on the thread that calls Run, and
  // messages only move on between them. When `tracing`, runs record a TraceEvent per step.
  Executor(const RankProgram& program, Communicators& comms, CpuStream* compute, bool tracing);
  ~Executor();

  // Runs every step once over the bound slots. On error nothing of the program is still computing; messages in flight
  // are kept, and their buffers must be, until the communicator is gone.
  Status Run(const SlotTable& slots, const StepComputer& computer, ExecutionStats& stats, Trace& trace);

 private:
  struct Execution;

  const RankProgram& program_;
  Communicators& comms_;
  CpuStream* const compute_;
  const bool tracing_;
  std::vector<std::vector<StepId>> successors_;  // per step: the steps that wait for it
  std::vector<int> waits_for_;                   // per step: dependencies counted at start
  std::atomic<bool> cancelled_ = false;          // a run has failed: queued compute steps return at once
  std::vector<Transfer> abandoned_;              // in flight when an error ended the run
};

}  // namespace tessera
