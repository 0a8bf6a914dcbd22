// Decoding with latent attention over ranks: absorbed queries against a paged latent cache that is replicated, sharded
// by tokens, or sharded by latent columns (TPLA). Formulas and methods: docs/latent.md.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "collectives/communicator.h"
#include "kernels/mla.h"
#include "runtime/base/status.h"
#include "runtime/engine/cache.h"
#include "runtime/engine/decode.h"
#include "runtime/engine/reshard.h"
#include "runtime/latent/decode_setup.h"
#include "runtime/latent/mla_projections.h"
#include "runtime/latent/sequences.h"
#include "runtime/latent/slice_exchange.h"

namespace tessera {

// What the last step cost this rank, summed over layers.
struct MlaDecodeStats {
  double seconds = 0;
  double projection_seconds = 0;
  double attention_seconds = 0;   // attention over the cache, exchanges of it included
  double slice_seconds = 0;       // TPLA: exchange of queries and values between slices
  double all_reduce_seconds = 0;  // the sum of D
  int64_t attention_bytes = 0;    // received in the attention's exchanges
  int64_t slice_bytes = 0;        // received
  int64_t all_reduce_bytes = 0;   // received
};

// One rank's end. Not thread-safe. Every rank makes the same calls with the same arguments.
class MlaDecoder {
 public:
  // Collective; `comm` outlives this. InvalidArgument names the option, e.g. a number of groups that does not divide
  // the latent width, with those that do.
  static StatusOr<std::unique_ptr<MlaDecoder>> Create(Communicator& comm, const MlaShape& shape,
                                                      const MlaDecoderOptions& options);
  // Layers are numbered in the order they are added. Copies this rank's share of the weights. Not collective.
  Status AddLayer(const MlaWeights& weights, const TplaFactors& factors = {});

  // An empty sequence, its fork, its shortening and its end, as in PagedCache but counted in tokens of the whole
  // sequence. Not collective. Numbers are the same on every rank.
  SequenceId Start() { return sequences_.Start(); }
  StatusOr<SequenceId> Fork(SequenceId parent, int64_t tokens) { return sequences_.Fork(parent, tokens); }
  Status Truncate(SequenceId sequence, int64_t tokens) { return sequences_.Truncate(sequence, tokens); }
  Status Release(SequenceId sequence) { return sequences_.Release(sequence); }
  int64_t tokens(SequenceId sequence) const { return sequences_.tokens(sequence); }

  // Collective. Starts sequences that a prefill has computed and hands their cache rows over to this decoder's
  // sharding. `layouts`: per sequence, which tokens each rank has. `rows`: [layers][sequences], this rank's cache rows
  // in the layout's order, [rows, 1, C + dr] in the cache's dtype. When one rank's cache has no room, all ranks return
  // its ResourceExhausted and nothing has changed.
  StatusOr<std::vector<SequenceId>> TakeOver(const std::vector<Layout>& layouts, std::span<const DenseRows> rows);

  // Collective. Makes room for the tokens of the coming step in every rank's cache, or on none: ResourceExhausted,
  // naming the rank, loses nothing. OutOfRange when a sequence would outgrow max_positions.
  Status BeginStep(std::span<const StepTokens> step);
  // Rows of the step BeginStep announced: tokens of all sequences in order.
  int64_t step_rows() const { return sequences_.step_rows(); }
  std::span<const int64_t> step_positions() const { return sequences_.positions(); }
  // Collective, synchronous. hidden [step_rows, D] fp32, the same on every rank -> out [step_rows, D] fp32, the same on
  // every rank up to nothing (sums are in rank order). Writes the step's latents to the cache, then attends.
  // FailedPrecondition without a step: one begins with a BeginStep that succeeds and ends with the next BeginStep,
  // Truncate, Release or Adopt.
  Status Attend(int layer, const float* hidden, float* out);

  const MlaShape& shape() const { return shape_; }
  const CacheSharding& sharding() const { return setup_.sharding; }
  PagedCache& cache() { return sequences_.cache(); }
  // The local cache's name of a sequence, and its rows there.
  SequenceId LocalSequence(SequenceId sequence) const { return sequences_.Local(sequence); }
  // Tells the decoder that the local cache has been given the rows of `tokens` tokens: for callers that write the cache
  // themselves. FailedPrecondition unless the local sequence has the rows its sharding asks for.
  Status Adopt(SequenceId sequence, int64_t tokens) { return sequences_.Adopt(sequence, tokens); }

  std::string_view kernel_name() const { return attention_->kernel_name(); }
  int64_t weight_bytes() const;
  const MlaDecodeStats& stats() const { return stats_; }

 private:
  struct Layer {
    MlaProjections maps;
    SliceFactors factors;
  };
  MlaDecoder(Communicator& comm, const MlaShape& shape, const MlaDecoderOptions& options, const MlaDecodeSetup& setup,
             PagedCache cache);
  void StoreRows(int layer, const float* kv);
  Status AttendCache(int layer, const float* query, std::vector<float>& latent_output);

  Communicator& comm_;
  MlaShape shape_;
  MlaDecoderOptions options_;
  MlaDecodeSetup setup_;
  SliceExchange slices_;
  RopeTable rope_;
  std::vector<Layer> layers_;
  std::unique_ptr<DecodeAttention> attention_;
  LatentSequences<PagedCache> sequences_;
  MlaDecodeStats stats_;
};

}  // namespace tessera
