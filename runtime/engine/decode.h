// Distributed decode attention: absorbed (or plain GQA) queries over this rank's part of a paged cache.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "collectives/communicator.h"
#include "kernels/decode.h"
#include "partition/decode.h"
#include "runtime/engine/attention.h"

namespace tessera {

struct DecodeOptions {
  std::string kernel;  // decode kernel by name; empty = the fastest that serves the cache
  int threads = 1;
  float scale = 1.0f;
  float soft_cap = 0.0f;
};

// One rank's end. Not thread-safe.
class DecodeAttention {
 public:
  // Collective: all ranks compare the digest of `spec` (rows aside). `comm` outlives this.
  static StatusOr<std::unique_ptr<DecodeAttention>> Create(Communicator& comm, const DecodeSpec& spec,
                                                           const DecodeOptions& options);
  ~DecodeAttention();

  // Collective and synchronous. Plans are made per number of query rows and kept.
  //   query  [rows, QueryHeads(rank), qk_width], spec.dtype, host, dense
  //   output [rows, OutputHeads(rank), v_width] fp32, host, dense; lse [rows, OutputHeads(rank), 1] fp32
  // `sequences` name rows of the local cache; the number of rows must be the same on every rank.
  Status Run(const ConstTensorView& query, const CacheLayer& cache, std::span<const DecodeSequence> sequences,
             const TensorView& output, const TensorView& lse);

  const DecodeSpec& spec() const;
  std::string_view kernel_name() const;
  const ExecutionStats& stats() const;  // of the last Run
  const RankProgram& program() const;   // of the last Run

 private:
  struct State;
  explicit DecodeAttention(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace tessera
