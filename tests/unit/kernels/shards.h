// Shards of whole sequences for kernel tests.
#pragma once

#include <vector>

#include "tests/unit/kernels/problem.h"

namespace tessera::testing {

// A sequence cut into strided or contiguous segments that lie, in any order, at rows of a larger tensor.
struct Shards {
  std::vector<int64_t> first_rows;
  std::vector<Segment> segments;
  int64_t rows = 0;  // of the tensor that holds them, gaps included
};

Shards RandomShards(int64_t tokens, Random& random);

// Heads [heads.begin, heads.end) of `whole`, its rows where the shards say.
Tensor Shard(const Tensor& whole, const Shards& shards, HeadRange heads, DType dtype, Random& random);

}  // namespace tessera::testing
