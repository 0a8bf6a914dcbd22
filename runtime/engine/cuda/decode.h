// Distributed decode attention on GPUs: one rank per GPU, the same plans as DecodeAttention (runtime/engine/decode.h);
// messages are NCCL's, and a communicator of the host agrees, watches and reports.
#pragma once

#include <chrono>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "collectives/communicator.h"
#include "collectives/stream_communicator.h"
#include "partition/decode.h"
#include "runtime/base/status.h"
#include "runtime/base/tensor.h"
#include "runtime/device/cuda/device.h"
#include "runtime/device/cuda/stream.h"
#include "runtime/engine/cuda/decode_step.h"

namespace tessera {

struct CudaDecodeOptions {
  std::string kernel;  // decode kernel by name; empty = the fastest that serves cache and GPU
  float scale = 1.0f;
  float soft_cap = 0.0f;
  bool value_in_key = false;  // latent cache
  // The most a step may hold: it sets the number of splits, and memory is made for it once.
  int max_sequences = 1;
  int max_rows_per_sequence = 1;
  int64_t max_rows = 0;       // query rows of a step; 0 = max_sequences * max_rows_per_sequence
  int64_t max_pages = 0;      // page numbers of all sequences of a step; a page that two share counts twice
  int page_tokens = 64;       // of the cache
  int64_t expected_rows = 0;  // cached rows of one sequence on one rank, about
  // A step of computation that takes longer ends the operator with DeadlineExceeded.
  std::chrono::milliseconds longest_step = kLongestGpuWait;
};

// One rank's end. Not thread-safe; one execution at a time. Every thread that calls it has made `device` current.
class CudaDecodeAttention {
 public:
  // Collective over `control` and `data`, the same ranks in the same order; both outlive this. All ranks compare the
  // spec (rows aside), scale and soft cap and allocate, or all fail with the first error. InvalidArgument names an
  // option; NotFound when no kernel serves spec and GPU (with each one's reason); ResourceExhausted without the memory.
  static StatusOr<std::unique_ptr<CudaDecodeAttention>> Create(Communicator& control, StreamCommunicator& data,
                                                               const CudaDevice& device, const DecodeSpec& spec,
                                                               const CudaDecodeOptions& options);
  ~CudaDecodeAttention();

  // Tables for steps within the options' limits. They must not outlive this; several may be in use by turns.
  StatusOr<CudaDecodeStep> MakeStep() const;

  // Collective. Submits to `stream` (not the legacy default stream) and returns without waiting for the GPU. Plans are
  // made on the host per number of query rows and kept; device memory is made by Create alone.
  //   query  [rows, QueryHeads(rank), qk_width], spec.dtype
  //   output [rows, OutputHeads(rank), v_width] fp32; lse [rows, OutputHeads(rank), 1] fp32
  // All device memory, dense, untouched until the stream has passed, as is `cache`. The number of rows must be the same
  // on every rank. `step` was uploaded in the order of `stream`; a rank that attends nothing does not look at it.
  // InvalidArgument, before anything is submitted, names the tensor, the cache's field or the sequences.
  //
  // May be captured into a CudaGraph once it has run plainly with as many rows (FailedPrecondition otherwise): each
  // launch then reads what is in query, cache and step, which needs sequences of as many rows as the capture. A graph's
  // launches are the caller's to wait for, one at a time, and it must not outlive this.
  Status Run(const ConstTensorView& query, const CacheLayer& cache, const CudaDecodeStep& step,
             const TensorView& output, const TensorView& lse, CUstream_st* stream);

  // Waits for every execution so far and watches GPU, NCCL and peers meanwhile: an error of any of them, or a peer that
  // dies or stalls, ends the communication on this rank and is returned with the rank and the plan step that the GPU
  // was in. The first error sticks to the object.
  Status Synchronize();

  const DecodeSpec& spec() const;  // rows: of the last Run
  std::string_view kernel_name() const;
  const RankProgram& program() const;  // of the last Run
  int64_t memory_bytes() const;        // device memory held for slots and splits

 private:
  struct State;
  explicit CudaDecodeAttention(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace tessera
