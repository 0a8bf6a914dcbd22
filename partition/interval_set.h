// Sorted disjoint half-open integer intervals.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "runtime/base/geometry.h"

namespace tessera {

class IntervalSet {
 public:
  IntervalSet() = default;
  explicit IntervalSet(Range range) { Add(range); }

  void Add(Range range);  // union; amortised constant when ranges arrive in order
  IntervalSet Union(const IntervalSet& other) const;
  IntervalSet Intersection(const IntervalSet& other) const;
  IntervalSet Difference(const IntervalSet& other) const;
  bool Intersects(Range range) const;
  // Covered integers below `value`: the packed position of `value` when only covered integers are stored.
  int64_t CountBefore(int64_t value) const;

  std::span<const Range> ranges() const& { return ranges_; }
  std::span<const Range> ranges() const&& = delete;  // would dangle, as in `for (r : F().ranges())`
  int64_t size() const;  // covered integers
  bool empty() const { return ranges_.empty(); }
  friend bool operator==(const IntervalSet&, const IntervalSet&) = default;

 private:
  std::vector<Range> ranges_;
};

}  // namespace tessera
