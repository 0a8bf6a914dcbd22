// What one rank has of a decode step of grouped-query attention, wherever it is computed.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "collectives/communicator.h"
#include "launcher/lm/decode_subject.h"
#include "partition/cache_sharding.h"
#include "partition/decode.h"
#include "runtime/base/tensor.h"
#include "runtime/engine/page_table.h"

namespace tessera::launcher {

// Queries are given, nothing is projected. The step's own tokens are in the cache already: the last query_tokens of it.
class GqaShare {
 public:
  // `load` outlives this.
  GqaShare(const DecodeLoad& load, const Method& method, int ranks, int rank);

  const DecodeSpec& spec() const { return spec_; }
  float scale() const;
  HeadRange query_heads() const { return spec_.QueryHeads(rank_); }
  int output_heads() const { return spec_.OutputHeads(rank_).size(); }
  int64_t local_rows() const { return local_rows_; }  // cached, of every sequence
  CacheOptions cache_options() const;                 // room for the local rows of all sequences
  double flops() const;                               // of this rank's attention

  // What each new token of a sequence sees of the local rows: [query_tokens].
  const std::vector<Range>& visible() const { return visible_; }
  // Queries of all sequences, rounded to the load's dtype: [rows, query_heads, width], dense.
  std::vector<std::byte> Query() const;
  // Calls `store(first, keys, values)` with what the rank holds of a sequence, some rows at a time: local rows from
  // `first` on, both [count, kv_heads, width] of the load's dtype, dense, at most kFillTokens.
  Status ForEachRows(
      int64_t sequence,
      const std::function<Status(int64_t first, const TensorView& keys, const TensorView& values)>& store) const;
  // Collective. All ranks' outputs [query_tokens, output_heads, width] of the first sequence -> [query_tokens, h,
  // width] on rank 0; empty elsewhere.
  StatusOr<std::vector<float>> Gather(Communicator& comm, std::span<const float> output) const;

 private:
  const DecodeLoad& load_;
  const int rank_;
  DecodeSpec spec_;
  CacheSharding sharding_;
  int64_t local_rows_ = 0;
  std::vector<Range> visible_;
};

}  // namespace tessera::launcher
