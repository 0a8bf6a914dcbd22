// Moving a cache from one sharding to another as a plan: which tokens and columns each rank sends to whom. The ranks of
// both ends may be the same, overlap or be apart (prefill and decode on different machines). Pure arithmetic.
//
// Not a RankProgram: what a rank holds is a product of tokens and columns in pages, not one dense slot, and what must be
// proved is delivery, not attention.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "partition/cache_sharding.h"
#include "partition/interval_set.h"
#include "partition/layout.h"
#include "runtime/base/status.h"

namespace tessera {

// One end of a hand-over.
struct CacheEnd {
  std::vector<int> ranks;  // world rank of the sharding's rank i; distinct
  CacheSharding sharding;
  // Source only, and instead of `sharding`: per sequence, which tokens each rank has (with all their columns), as a
  // sequence-sharded prefill leaves them.
  std::vector<Layout> layouts;
  int IndexOf(int world_rank) const;  // kNoIndex when the rank has no part in this end
  friend bool operator==(const CacheEnd&, const CacheEnd&) = default;
};
inline constexpr int kNoIndex = -1;

// The few numbers that determine a plan.
struct ReshardSpec {
  CacheRowShape shape;          // whole, before sharding
  std::vector<int64_t> tokens;  // per sequence
  CacheEnd from;
  CacheEnd to;
  friend bool operator==(const ReshardSpec&, const ReshardSpec&) = default;
};
Status Validate(const ReshardSpec& spec);
uint64_t Hash(const ReshardSpec& spec);

// Columns number the elements of a whole row: latent then rope, or keys head by head and then values head by head.
IntervalSet HeldColumns(const CacheEnd& end, const CacheRowShape& shape, int index);
IntervalSet HeldTokens(const CacheEnd& end, int sequence, int64_t tokens, int index);

// All `columns` of all `tokens` of one sequence, in every layer.
struct ReshardPart {
  int sequence = 0;
  IntervalSet tokens;
  IntervalSet columns;
  int64_t elements() const { return tokens.size() * columns.size(); }  // per layer
  friend bool operator==(const ReshardPart&, const ReshardPart&) = default;
};

// Everything one rank gives another; from == to is a copy within the rank and no traffic.
struct ReshardMessage {
  int from = 0;  // world ranks
  int to = 0;
  std::vector<ReshardPart> parts;
  int64_t elements() const;  // per layer
  friend bool operator==(const ReshardMessage&, const ReshardMessage&) = default;
};

struct ReshardPlan {
  ReshardSpec spec;
  std::vector<ReshardMessage> messages;  // ascending by (from, to), at most one per pair
  std::string ToString() const;          // a line per message
  friend bool operator==(const ReshardPlan&, const ReshardPlan&) = default;
};

// What a rank of the new sharding had before stays on it; the rest comes once, from one of the ranks that hold it. Ranks
// that hold the same columns share the sending evenly, and each receiver is served by as few of them as that allows.
StatusOr<ReshardPlan> MakeReshardPlan(const ReshardSpec& spec);

// Elements per layer that must cross between ranks: what the new holders lack. No plan moves less, MakeReshardPlan no
// more. In closed form up to a walk over the blocks of a sequence sharding.
int64_t MovedElements(const ReshardSpec& spec);

// FailedPrecondition unless every element arrives exactly once at every rank that shall hold it, from a rank that holds
// it, and no more moves than MovedElements.
Status Verify(const ReshardPlan& plan);

}  // namespace tessera
