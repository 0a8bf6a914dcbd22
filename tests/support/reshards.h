// Seeded random hand-overs of a cache, for tests of the plan and of its execution.
#pragma once

#include <algorithm>
#include <numeric>
#include <random>

#include "partition/reshard.h"
#include "tests/support/problems.h"

namespace tessera::testing {

// A striped layout whose ranks keep every other of their tokens first: rows that are not in token order.
inline Layout OddsFirst(int64_t tokens, int ranks) {
  std::vector<std::vector<Segment>> segments(ranks);
  for (int r = 0; r < ranks; ++r) {
    for (int64_t begin : {r + ranks, r}) {
      const int64_t count = (tokens - begin + 2 * ranks - 1) / (2 * ranks);
      if (begin < tokens) segments[r].push_back({begin, count, 2 * ranks});
    }
  }
  return Layout::FromSegments(tokens, segments).value();
}

// Any two shardings of one cache over some of `world` ranks, which may be the same, overlap or be apart; odd lengths
// (zero too), ranks without heads, every layout of a sequence-sharded prefill.
inline ReshardSpec RandomReshard(std::mt19937_64& generator, int world, int64_t most_tokens) {
  const auto pick = [&](int64_t low, int64_t high) {
    return static_cast<int>(std::uniform_int_distribution<int64_t>(low, high)(generator));
  };
  ReshardSpec spec;
  CacheRowShape& shape = spec.shape;
  shape.dtype = static_cast<DType>(pick(0, 2));
  shape.latent = pick(0, 1) == 0;
  if (shape.latent) {
    shape.value_width = 12 * pick(1, 2);
    shape.key_width = shape.value_width + pick(0, 5);
  } else {
    shape.kv_heads = pick(1, 4);
    shape.key_width = pick(1, 7);
    shape.value_width = pick(1, 7);
  }
  for (int i = pick(0, 4); i > 0; --i) spec.tokens.push_back(pick(0, pick(0, 2) == 0 ? 5 : most_tokens));
  std::vector<int> ranks(world);
  std::iota(ranks.begin(), ranks.end(), 0);
  std::shuffle(ranks.begin(), ranks.end(), generator);
  const int from = pick(1, world);
  spec.from.ranks.assign(ranks.begin(), ranks.begin() + from);
  if (from < world && pick(0, 1) == 0) {  // apart
    spec.to.ranks.assign(ranks.begin() + from, ranks.begin() + pick(from + 1, world));
  } else {
    if (pick(0, 1) == 0) std::shuffle(ranks.begin(), ranks.end(), generator);
    spec.to.ranks.assign(ranks.begin(), ranks.begin() + pick(1, world));
  }
  for (CacheEnd* end : {&spec.from, &spec.to}) {
    CacheSharding& sharding = end->sharding;
    sharding.ranks = static_cast<int>(end->ranks.size());
    sharding.axis = static_cast<CacheAxis>(pick(0, shape.latent ? 3 : 2));
    sharding.block_tokens = pick(1, 9);
    sharding.query_heads = shape.kv_heads * pick(1, 6);
    do {
      sharding.groups = pick(1, 12);
    } while (std::gcd(sharding.ranks, 12) % sharding.groups != 0);
  }
  if (pick(0, 2) == 0) {
    const int kind = pick(0, 3);
    for (int64_t tokens : spec.tokens) {
      spec.from.layouts.push_back(kind == 0   ? Layout::Zigzag(tokens, from)
                                  : kind == 1 ? Layout::Contiguous(tokens, from)
                                  : kind == 2 ? Layout::Striped(tokens, from)
                                              : OddsFirst(tokens, from));
    }
  }
  return spec;
}

}  // namespace tessera::testing
