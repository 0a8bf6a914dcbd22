#include "tests/unit/kernels/shards.h"

#include <algorithm>

namespace tessera::testing {

Shards RandomShards(int64_t tokens, Random& random) {
  Shards shards;
  const auto place = [&](const Segment& segment) {
    shards.rows += random.Integer(0, 3);
    shards.first_rows.push_back(shards.rows);
    shards.segments.push_back(segment);
    shards.rows += segment.count;
  };
  if (random.OneIn(2)) {
    const int64_t ranks = random.Integer(1, 4);
    for (int64_t r = 0; r < ranks; ++r) place({r, (tokens - r + ranks - 1) / ranks, ranks});
  } else {
    std::vector<Segment> parts;
    for (int64_t begin = 0; begin < tokens;) {
      const int64_t count = std::min(tokens - begin, random.Integer(0, 90));
      parts.push_back({begin, count, 1});
      begin += count;
    }
    while (!parts.empty()) {
      const auto pick = parts.begin() + random.Integer(0, static_cast<int64_t>(parts.size()) - 1);
      place(*pick);
      parts.erase(pick);
    }
  }
  shards.rows += random.Integer(0, 3);
  return shards;
}

Tensor Shard(const Tensor& whole, const Shards& shards, HeadRange heads, DType dtype, Random& random) {
  Tensor local(dtype, shards.rows, heads.size(), whole.view().width, &random);
  for (size_t s = 0; s < shards.segments.size(); ++s) {
    for (int64_t row = 0; row < shards.segments[s].count; ++row) {
      for (int head = heads.begin; head < heads.end; ++head) {
        for (int i = 0; i < whole.view().width; ++i) {
          local.Set(shards.first_rows[s] + row, head - heads.begin, i,
                    whole.Get(shards.segments[s].token(row), head, i));
        }
      }
    }
  }
  return local;
}

}  // namespace tessera::testing
