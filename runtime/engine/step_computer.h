// What an executor does not know: how one compute step is computed. Internal to the engine.
#pragma once

#include <atomic>

#include "partition/plan.h"
#include "runtime/base/status.h"
#include "runtime/engine/slots.h"

namespace tessera {

// One run's way of computing steps. Every operator brings its own; steps that belong to none are ComputeCommonStep's.
class StepComputer {
 public:
  virtual ~StepComputer() = default;
  // Runs on the executor's compute stream, one step at a time. `cancelled` turns true when the run has failed; the
  // result is then nobody's.
  virtual Status Compute(const StepBody& body, const SlotTable& slots, const std::atomic<bool>& cancelled) const = 0;
};

// Clear, merge, zero, add and round; Internal, naming the kind, for any other step.
Status ComputeCommonStep(const StepBody& body, const SlotTable& slots);

}  // namespace tessera
