// Who needs what: exact sets of tokens that meet under a mask. Planners send these and nothing else.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "partition/interval_set.h"
#include "partition/mask.h"
#include "runtime/base/geometry.h"

namespace tessera {

// Finds the bands that can meet a range of queries without scanning all of them (a packed batch has one per document).
class MaskIndex {
 public:
  explicit MaskIndex(const Mask& mask);

  // Keys attended by at least one query of the segments. Linear in the bands met; a strided segment whose stride
  // exceeds the width of a window costs one interval per query.
  IntervalSet KeysFor(std::span<const Segment> queries) const;
  // Queries that attend at least one key of the segments.
  IntervalSet QueriesFor(std::span<const Segment> keys) const;
  // Whether any pair of the two segments is attended.
  bool AnyPair(const Segment& queries, const Segment& keys) const;

 private:
  std::span<const Band> BandsFor(Range queries) const;
  std::vector<Band> bands_;           // ascending first query
  std::vector<int64_t> queries_end_;  // running maximum of queries.end
};

}  // namespace tessera
