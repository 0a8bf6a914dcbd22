// A plan of one pass made ready to run on this rank's GPU, any number of times. Internal to the engine.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "collectives/stream_communicator.h"
#include "partition/plan.h"
#include "runtime/device/cuda/buffer.h"
#include "runtime/engine/bindings.h"
#include "runtime/engine/cuda/attention_computer.h"
#include "runtime/engine/cuda/executor.h"
#include "runtime/engine/slots.h"

namespace tessera {

class CudaReadyPass {
 public:
  // Builds the plan of all ranks (rounds follow from it), allocates slots and plans the attention; waits for `own`, the
  // stream that memory belongs to. `data` outlives this. Not collective.
  static StatusOr<std::unique_ptr<CudaReadyPass>> Create(const PlanSpec& spec, const CudaDevice& device,
                                                         StreamCommunicator& data, const cuda::AttendKernel& forward,
                                                         const cuda::BackwardKernel* backward, const CudaStream& own);

  // Binds the tensors and submits the program.
  Status Submit(std::span<const Binding> bindings, const CudaHeadVectors& vectors, CUstream_st* stream);

  const PlanSpec& spec() const { return spec_; }
  const RankProgram& program() const { return program_; }
  const SlotTable& slots() const { return slots_; }  // bound as of the last Submit
  CudaExecutor& executor() { return *executor_; }

 private:
  CudaReadyPass(const PlanSpec& spec, const CudaDevice& device, const CudaStream& own)
      : spec_(spec), device_(device), own_(own) {}
  // Dense memory for a tensor that is not dense.
  StatusOr<TensorView> DenseCopy(const Binding& binding);

  const PlanSpec spec_;
  const CudaDevice device_;
  const CudaStream& own_;
  RankProgram program_;
  SlotTable slots_;
  std::vector<DeviceBuffer> memory_;            // of slots that are not external
  DeviceBuffer dense_[kBackwardExternalSlots];  // made when first needed
  std::optional<CudaAttentionWork> work_;
  std::optional<CudaExecutor> executor_;
};

}  // namespace tessera
