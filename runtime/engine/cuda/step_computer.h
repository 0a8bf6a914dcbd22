// What the CUDA executor does not know: how one compute step is launched. Internal to the engine.
#pragma once

#include "partition/plan.h"
#include "runtime/base/status.h"
#include "runtime/engine/slots.h"

struct CUstream_st;

namespace tessera {

// One execution's way of launching steps. Every operator brings its own; steps that belong to none are
// LaunchCommonStep's.
class CudaStepComputer {
 public:
  virtual ~CudaStepComputer() = default;
  // Submits one compute step of the program. Never waits for the GPU, allocates nothing.
  virtual Status Launch(StepId step, const SlotTable& slots, CUstream_st* stream) const = 0;
};

// Clear, merge, zero, add and round; Internal, naming the kind, for any other step. Slots are in device memory.
Status LaunchCommonStep(const StepBody& body, const SlotTable& slots, CUstream_st* stream);

}  // namespace tessera
