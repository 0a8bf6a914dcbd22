// What a decode step of one attention layer costs under each method: predicted seconds, bytes moved, bytes kept.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "partition/cost.h"
#include "partition/decode.h"

namespace tessera {

// One layer and one step. Letters as in docs/latent.md; widths are per head.
struct DecodeProblem {
  int64_t context_tokens = 0;      // cached tokens of each sequence
  int64_t batch = 1;               // sequences
  int64_t query_tokens = 1;        // new tokens of each sequence
  int hidden = 0;                  // D; 0 = attention alone, without projections and the sum of their outputs
  int heads = 1;                   // h
  int kv_heads = 1;                // 1 for a latent cache
  int query_rank = 0;              // q_lora_rank; 0 = none
  int latent = 0;                  // C; 0 = a GQA cache of kv_heads keys of width nope + rope and values of width value
  int nope = 0;                    // dn
  int rope = 0;                    // dr
  int value = 0;                   // dv
  DType dtype = DType::kBFloat16;  // of weights, queries and cache
  int block_tokens = 64;           // of caches sharded by tokens

  int64_t rows() const { return batch * query_tokens; }
  CacheRowShape row_shape() const;
  std::string ToString() const;
};
// InvalidArgument naming the field, its value and what is allowed.
Status Validate(const DecodeProblem& problem);

// The spec of a method, with the widths that a rank stores. InvalidArgument as Validate of problem, cache and spec:
// tpla needs a latent cache, and `groups` that divide ranks and latent columns.
StatusOr<DecodeSpec> MakeDecodeSpec(const DecodeProblem& problem, DecodeMethod method, int ranks, int groups = 1);

// Everything here is predicted. Seconds are those of the busiest rank; the parts follow each other.
struct DecodePrice {
  DecodeSpec spec;
  bool exact = true;              // tpla in more than one group approximates
  double projection_seconds = 0;  // reading weights, or the products of all rows with them, whichever takes longer
  double attention_seconds = 0;   // reading the cache, or the products with it, whichever takes longer
  double exchange_seconds = 0;    // messages of the decode plan
  double slice_seconds = 0;       // tpla: queries gathered and values added up among the ranks of the same heads
  double all_reduce_seconds = 0;  // the sum of the heads' outputs, D wide, in fp32
  int64_t exchange_bytes = 0;     // received over all ranks
  int64_t slice_bytes = 0;        // received over all ranks
  int64_t all_reduce_bytes = 0;   // received over all ranks
  int64_t cache_bytes = 0;        // of this layer on the fullest rank, all sequences
  double cache_bytes_per_token =
      0;                     // of a token on a rank: cache_bytes over batch and context; without tokens, of the row
  int64_t weight_bytes = 0;  // of this layer on the fullest rank, as decoding uses them
  double seconds() const {
    return projection_seconds + attention_seconds + exchange_seconds + slice_seconds + all_reduce_seconds;
  }
};
// Closed form, for any number of ranks.
StatusOr<DecodePrice> PriceDecode(const DecodeProblem& problem, DecodeMethod method, int ranks, int groups,
                                  const MachineModel& machine);

// Seconds of every rank's attend_cache step, for Simulate.
std::vector<double> AttendSeconds(const DecodeProblem& problem, const DecodeSpec& spec, const MachineModel& machine);

// `auto`: the cheapest of the methods that are exact. TPLA is approximate and has to be asked for.
StatusOr<DecodePrice> ChooseDecodeMethod(const DecodeProblem& problem, int ranks, const MachineModel& machine);
// Every method, tpla with each number of groups above 1 that works, in the order of AllDecodeMethods.
StatusOr<std::vector<DecodePrice>> PriceDecodeMethods(const DecodeProblem& problem, int ranks,
                                                      const MachineModel& machine);

}  // namespace tessera
