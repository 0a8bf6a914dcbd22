// Launches the steps of decode attention on a CUDA stream. Internal to the engine.
#pragma once

#include "kernels/cuda/decode.h"
#include "partition/decode.h"
#include "runtime/base/status.h"
#include "runtime/device/cuda/buffer.h"
#include "runtime/device/cuda/stream.h"
#include "runtime/engine/cuda/decode_step.h"
#include "runtime/engine/cuda/step_computer.h"

namespace tessera {

struct CudaDecodeOptions;

// What a rank's attend_cache step is, whatever the rows of a step: planned for the most, with memory for the splits.
class CudaDecodeWork {
 public:
  // Does not wait for the memory, which belongs to `own`. `heads` are those whose queries the step attends; a rank may
  // have none.
  static StatusOr<CudaDecodeWork> Create(const DecodeSpec& spec, int rank, HeadRange heads,
                                         const CudaDecodeOptions& options, const DecodeStepLimits& limits,
                                         const CudaDevice& device, const CudaStream& own);
  std::string_view kernel_name() const { return kernel_->name(); }
  int64_t workspace_bytes() const { return workspace_.bytes(); }

 private:
  friend class CudaDecodeComputer;
  const cuda::DecodeDeviceKernel* kernel_ = nullptr;
  cuda::DecodeShape shape_;
  cuda::DecodeWork work_;
  DeviceBuffer workspace_;
};

class CudaDecodeComputer final : public CudaStepComputer {
 public:
  CudaDecodeComputer(const RankProgram& program, const CudaDecodeWork& work, const CacheLayer& cache,
                     const CudaDecodeStep& step)
      : program_(program), work_(work), cache_(cache), step_(step) {}
  Status Launch(StepId step, const SlotTable& slots, CUstream_st* stream) const override;

 private:
  const RankProgram& program_;
  const CudaDecodeWork& work_;
  const CacheLayer& cache_;
  const CudaDecodeStep& step_;
};

}  // namespace tessera
