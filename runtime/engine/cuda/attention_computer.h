// Launches the steps of softmax attention, forward and backward, on a CUDA stream. Internal to the engine.
#pragma once

#include <map>

#include "kernels/cuda/attend.h"
#include "kernels/cuda/backward.h"
#include "partition/plan.h"
#include "runtime/base/status.h"
#include "runtime/device/cuda/buffer.h"
#include "runtime/device/cuda/stream.h"
#include "runtime/engine/cuda/step_computer.h"

namespace tessera {

// Per-head vectors of the whole problem, [query_heads] fp32 in device memory; null unless the score options ask for
// them.
struct CudaHeadVectors {
  const float* alibi_slopes = nullptr;
  const float* sinks = nullptr;
};

// What tiles and masks decide about the attend steps of a program: planned and copied to the device once.
class CudaAttentionWork {
 public:
  // Waits for the copy. `backward` is null for forward programs. The program outlives this; kernels are static.
  static StatusOr<CudaAttentionWork> Create(const Problem& problem, const RankProgram& program,
                                            const CudaDevice& device, const cuda::AttendKernel& forward,
                                            const cuda::BackwardKernel* backward, const CudaStream& stream);

 private:
  friend class CudaAttentionComputer;
  template <typename Work>
  struct Planned {
    cuda::AttendShape shape;
    Work work;
    int64_t offset = 0;  // of its lists in lists_
  };
  const RankProgram* program_ = nullptr;
  const cuda::AttendKernel* forward_ = nullptr;
  const cuda::BackwardKernel* backward_ = nullptr;
  // Of the attend steps that have heads.
  std::map<StepId, Planned<cuda::AttendWork>> attends_;
  std::map<StepId, Planned<cuda::BackwardWork>> backward_attends_;
  DeviceBuffer lists_;
};

class CudaAttentionComputer final : public CudaStepComputer {
 public:
  CudaAttentionComputer(const CudaAttentionWork& work, const CudaHeadVectors& vectors)
      : work_(work), vectors_(vectors) {}
  Status Launch(StepId step, const SlotTable& slots, CUstream_st* stream) const override;

 private:
  Status Attend(StepId id, const AttendStep& step, const SlotTable& slots, CUstream_st* stream) const;
  Status AttendBackward(StepId id, const AttendBackwardStep& step, const SlotTable& slots, CUstream_st* stream) const;
  const float* SlopesOf(const cuda::AttendShape& shape) const {
    return shape.alibi ? vectors_.alibi_slopes + shape.first_query_head : nullptr;
  }

  const CudaAttentionWork& work_;
  const CudaHeadVectors vectors_;
};

}  // namespace tessera
