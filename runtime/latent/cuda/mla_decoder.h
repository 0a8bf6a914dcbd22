// Decoding with latent attention on GPUs, one rank per GPU: MlaDecoder (runtime/latent/mla_decoder.h) with its cache,
// weights and sums in device memory. Formulas and methods: docs/latent.md.
#pragma once

#include <memory>
#include <span>
#include <string_view>

#include "collectives/communicator.h"
#include "collectives/stream_communicator.h"
#include "kernels/mla.h"
#include "runtime/base/status.h"
#include "runtime/device/cuda/device.h"
#include "runtime/engine/cuda/cache.h"
#include "runtime/latent/decode_setup.h"
#include "runtime/latent/sequences.h"

namespace tessera {

struct CudaMlaDecoderOptions {
  MlaDecoderOptions decoder;  // compute: fp16 too
  // The most a step may hold: memory is made for it once.
  int max_sequences = 1;
  int max_tokens_per_sequence = 1;
  int64_t expected_tokens = 0;  // of one sequence, about: it sets the number of splits
};

// One rank's end. Not thread-safe. Every rank makes the same calls with the same arguments. Every thread that calls it
// has made `device` current. Calls and errors as in MlaDecoder, unless stated.
class CudaMlaDecoder {
 public:
  // Collective over `control` and `data`, the same ranks in the same order; both outlive this, as does `stream` (not
  // the legacy default stream), in whose order everything happens. NotFound when no kernel serves the latent's width,
  // the cache's dtype and the GPU; ResourceExhausted without the memory.
  static StatusOr<std::unique_ptr<CudaMlaDecoder>> Create(Communicator& control, StreamCommunicator& data,
                                                          const CudaDevice& device, const MlaShape& shape,
                                                          const CudaMlaDecoderOptions& options, CUstream_st* stream);
  ~CudaMlaDecoder();

  // Copies this rank's share of the weights and waits for it. Not collective.
  Status AddLayer(const MlaWeights& weights, const TplaFactors& factors = {});

  SequenceId Start();
  StatusOr<SequenceId> Fork(SequenceId parent, int64_t tokens);
  Status Truncate(SequenceId sequence, int64_t tokens);
  Status Release(SequenceId sequence);
  int64_t tokens(SequenceId sequence) const;

  // Collective; waits for the other ranks' hosts, but for no GPU, unless steps are begun two ahead of it.
  // InvalidArgument beyond the options' limits.
  Status BeginStep(std::span<const StepTokens> step);
  int64_t step_rows() const;
  std::span<const int64_t> step_positions() const;

  // Collective. Submits and returns without waiting for the GPU; allocates nothing. hidden [step_rows, D] and out
  // [step_rows, D] fp32, dense device memory, the same on every rank, untouched until the stream has passed. May be
  // captured once the same layer has run plainly on as many rows.
  Status Attend(int layer, const float* hidden, float* out);

  // Waits for the stream and watches GPU, NCCL and peers meanwhile. An error of any of them, or a peer that dies or
  // stalls, ends the communication on this rank and is returned. It sticks.
  Status Synchronize();

  const MlaShape& shape() const;
  const CacheSharding& sharding() const;
  CudaPagedCache& cache();
  SequenceId LocalSequence(SequenceId sequence) const;
  Status Adopt(SequenceId sequence, int64_t tokens);

  std::string_view kernel_name() const;
  int64_t weight_bytes() const;

 private:
  struct State;
  explicit CudaMlaDecoder(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace tessera
