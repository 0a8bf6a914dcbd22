// Launches the compute steps of softmax attention on a CUDA stream. Everything that tiles and masks decide is planned
// and copied to the device once. Internal to the engine.
#pragma once

#include <map>

#include "kernels/cuda/attend.h"
#include "partition/plan.h"
#include "runtime/base/status.h"
#include "runtime/device/cuda/buffer.h"
#include "runtime/device/cuda/stream.h"
#include "runtime/engine/slots.h"

namespace tessera {

// Per-head vectors of the whole problem, [query_heads] fp32 in device memory; null unless the score options ask for
// them.
struct CudaHeadVectors {
  const float* alibi_slopes = nullptr;
  const float* sinks = nullptr;
};

class CudaComputer {
 public:
  // Plans every attend step of the program; waits for the copy of the plans to the device. Kernels are static.
  static StatusOr<CudaComputer> Create(const Problem& problem, const RankProgram& program, const CudaDevice& device,
                                       const cuda::AttendKernel& kernel, const CudaStream& stream);

  // Submits one compute step of the program. Never waits, allocates nothing.
  Status Launch(StepId step, const SlotTable& slots, const CudaHeadVectors& vectors, CUstream_st* stream) const;

 private:
  struct PlannedAttend {
    cuda::AttendShape shape;
    cuda::AttendWork work;
    int64_t offset = 0;  // of its lists in lists_
  };

  Status Launch(const AttendStep& step, const PlannedAttend& planned, const SlotTable& slots,
                const CudaHeadVectors& vectors, CUstream_st* stream) const;

  const RankProgram* program_ = nullptr;
  const cuda::AttendKernel* kernel_ = nullptr;
  std::map<StepId, PlannedAttend> attends_;  // steps that have heads
  DeviceBuffer lists_;
};

}  // namespace tessera
