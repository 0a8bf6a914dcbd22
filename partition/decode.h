// Decode over ranks: a few query rows per sequence attend to a cache that is replicated, sharded by tokens or sharded
// by latent columns. Every method is a planner that emits the plan's ordinary steps around one new one, attend_cache.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "partition/cache_sharding.h"
#include "partition/plan.h"
#include "runtime/base/status.h"

namespace tessera {

enum class DecodeMethod : uint8_t {
  kHead,  // heads sharded; the latent cache replicated, a GQA cache sharded by key/value head. Nothing moves
  kTpla,  // latent columns sharded in `groups`, heads within a group's ranks. Attention moves nothing. Approximate
  kGatherQuery,      // tokens sharded; queries of own heads are gathered, partials return to the heads' owners (DCP)
  kReplicatedQuery,  // tokens sharded; every rank has all queries, partials go to the heads' owners (Helix)
  kTree  // tokens sharded; every rank has all queries, partials are reduced up and the result sent down a tree
};
// "head", "tpla", "gather-query", "replicated-query", "tree"
std::string_view Name(DecodeMethod method);
StatusOr<DecodeMethod> ParseDecodeMethod(std::string_view name);  // InvalidArgument lists the names
std::vector<DecodeMethod> AllDecodeMethods();

// The few numbers that determine a decode plan.
struct DecodeSpec {
  DecodeMethod method = DecodeMethod::kHead;
  int ranks = 1;
  int groups = 1;    // kTpla
  int64_t rows = 0;  // query rows of this step over all sequences
  int heads = 1;
  int kv_heads = 1;
  int qk_width = 0;  // of what one rank stores: C / g + dr for TPLA
  int v_width = 0;
  DType dtype = DType::kBFloat16;  // of queries and cache

  CacheAxis axis() const;
  // Heads whose queries the caller supplies on `rank`, and heads whose output it gets.
  HeadRange QueryHeads(int rank) const;
  HeadRange OutputHeads(int rank) const;
  // Of the output heads, those that a rank projects to the hidden state, so that the sum over all ranks has everything
  // once: all of them, but a part under kTree, where every rank has the whole output, and under kTpla, where the ranks
  // of SlicePeers add up their slices' values first.
  HeadRange SummandHeads(int rank) const;
  // Heads whose queries a rank projects from the hidden state: QueryHeads, but under kTpla the summand heads, as the
  // ranks of SlicePeers need the same queries.
  HeadRange ProjectedHeads(int rank) const;
  // kTpla: ranks that serve the heads of `rank`, one per slice, in the order of the slices. Otherwise the rank alone.
  std::vector<int> SlicePeers(int rank) const;
  friend bool operator==(const DecodeSpec&, const DecodeSpec&) = default;
};
Status Validate(const DecodeSpec& spec);
// Where the cache of a decode step lies.
CacheSharding ShardingOf(const DecodeSpec& spec, int block_tokens);
// Stable 64-bit digest of everything that determines a decode plan but the rows, which differ from step to step.
uint64_t HashWithoutRows(const DecodeSpec& spec);
// "gather-query on 4 ranks: 3 rows of 16 heads (1 key/value), widths 576 and 512, bf16"
std::string ToString(const DecodeSpec& spec);

// A decode plan for every rank. Pure value.
struct DecodePlan {
  DecodeSpec spec;
  std::vector<RankProgram> programs;  // one per rank
  friend bool operator==(const DecodePlan&, const DecodePlan&) = default;
};
// The programs of all ranks, or of one (what execution uses), of a valid spec.
DecodePlan BuildDecodePlan(const DecodeSpec& spec);
RankProgram BuildDecodeProgram(const DecodeSpec& spec, int rank);

}  // namespace tessera
