// Areas of small query segments in masks of many bands, without visiting every band. Private to partition.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "partition/interval_set.h"
#include "partition/mask.h"
#include "runtime/base/geometry.h"

namespace tessera {

class BandIndex {
 public:
  explicit BandIndex(const Mask& mask) : BandIndex(mask.bands()) {}
  explicit BandIndex(std::span<const Band> bands);

  // Attended pairs of `queries` x `keys`; equals Mask::Area.
  double Area(const Segment& queries, const Segment& keys) const;
  bool Allows(int64_t query, int64_t key) const;
  // Every key that some query of `queries` attends, as ranges in no particular order.
  void AppendKeysOf(const Segment& queries, std::vector<Range>* keys) const;
  // Every query that attends some key of `keys`.
  void AppendQueriesOf(const Segment& keys, std::vector<Range>* queries) const;

 private:
  // Bands ordered by the start of one axis; reach[i] is the furthest end among the first i + 1, so a backward walk can
  // stop.
  struct Axis {
    std::vector<Band> bands;
    std::vector<int64_t> reach;
  };
  Axis by_query_;
  Axis by_key_;
};

// The same pairs with queries and keys exchanged.
std::vector<Band> Transposed(std::span<const Band> bands);

// Union of ranges in any order.
IntervalSet UnionOf(std::vector<Range> ranges);

// The tokens two progressions share, itself a progression; empty when there are none.
Segment CommonTokens(const Segment& a, const Segment& b);

}  // namespace tessera
