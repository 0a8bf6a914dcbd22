// Distributed attention on GPUs: one rank per GPU, planned once, executed many times. The same plans as Attention
// (runtime/engine/attention.h); messages are NCCL's, and a communicator of the host agrees, watches and reports.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <string_view>

#include "collectives/communicator.h"
#include "collectives/stream_communicator.h"
#include "partition/plan.h"
#include "runtime/base/status.h"
#include "runtime/base/tensor.h"
#include "runtime/device/cuda/device.h"
#include "runtime/device/cuda/stream.h"
#include "runtime/engine/cuda/attention_computer.h"

namespace tessera {

struct CudaAttentionOptions {
  std::string kernel;     // implementation by name; empty = the fastest that serves problem and GPU
  bool backward = false;  // also prepare Backward(): its plan and slots
  // A step of computation that takes longer ends the operator with DeadlineExceeded.
  std::chrono::milliseconds longest_step = kLongestGpuWait;
};

// The caller's tensors of a backward pass, as BackwardTensors but in device memory.
struct CudaBackwardTensors {
  ConstTensorView query, key, value;  // as given to Forward
  ConstTensorView output;             // what Forward returned
  ConstTensorView lse;
  ConstTensorView output_gradient;
  TensorView query_gradient, key_gradient, value_gradient;
  float* sink_gradient = nullptr;  // [query_heads] fp32 device memory, summed over all ranks; null without sinks
};

// One rank's end. Not thread-safe; one execution at a time. Every thread that calls it has made `device` current.
class CudaAttention {
 public:
  // Collective over `control` and `data`, the same ranks in the same order; both outlive this. All ranks compare
  // problem and plan and allocate, or all fail with the first error. InvalidArgument when sizes disagree; NotFound when
  // no kernel serves problem and GPU (with each one's reason); ResourceExhausted without the memory for slots.
  static StatusOr<std::unique_ptr<CudaAttention>> Create(Communicator& control, StreamCommunicator& data,
                                                         const CudaDevice& device, const PlanSpec& spec,
                                                         const CudaAttentionOptions& options = {});
  ~CudaAttention();

  // Collective. Submits to `stream` (not the legacy default stream) and returns without waiting for the GPU. Shapes as
  // in Attention::Forward; device memory, unit width stride (strided tensors are copied to dense ones on the GPU),
  // untouched until the stream has passed. lse is fp32. InvalidArgument, before anything is submitted, names a tensor
  // whose shape, dtype or memory space is wrong, or a vector that is missing.
  Status Forward(const ConstTensorView& query, const ConstTensorView& key, const ConstTensorView& value,
                 const TensorView& output, const TensorView& lse, const CudaHeadVectors& vectors, CUstream_st* stream);

  // Collective, like Forward; needs options.backward and an earlier Forward (FailedPrecondition otherwise). Gradients
  // are overwritten; InvalidArgument when one overlaps another tensor. Key and value gradients are summed in fp32 in a
  // fixed order and rounded once.
  Status Backward(const CudaBackwardTensors& tensors, const CudaHeadVectors& vectors, CUstream_st* stream);

  // Forward and Backward may be captured into a CudaGraph, once each has run plainly (strided tensors and NCCL allocate
  // then). A graph's launches are the caller's to wait for, one at a time, and it must not outlive this.

  // Waits for every execution so far and watches GPU, NCCL and peers meanwhile: an error of any of them, or a peer that
  // dies or stalls, ends the communication on this rank and is returned with the rank and the plan step that the GPU
  // was in. The first error sticks to the object.
  Status Synchronize();

  const RankProgram& program() const;
  std::string_view kernel_name() const;
  int64_t slot_bytes() const;  // device memory held for slots

 private:
  struct State;
  explicit CudaAttention(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace tessera
