#include "partition/interval_set.h"

#include <algorithm>

namespace tessera {

void IntervalSet::Add(Range range) {
  if (range.empty()) return;
  if (ranges_.empty() || range.begin > ranges_.back().end) {
    ranges_.push_back(range);
    return;
  }
  // First range that touches or follows `range`, then everything up to the last one it touches is absorbed.
  auto first = std::lower_bound(ranges_.begin(), ranges_.end(), range.begin,
                                [](const Range& r, int64_t begin) { return r.end < begin; });
  auto last = first;
  while (last != ranges_.end() && last->begin <= range.end) {
    range = {std::min(range.begin, last->begin), std::max(range.end, last->end)};
    ++last;
  }
  if (first == last) {
    ranges_.insert(first, range);
  } else {
    *first = range;
    ranges_.erase(first + 1, last);
  }
}

IntervalSet IntervalSet::Union(const IntervalSet& other) const {
  IntervalSet result;
  size_t i = 0;
  size_t j = 0;
  while (i < ranges_.size() || j < other.ranges_.size()) {
    const bool mine = j == other.ranges_.size() || (i < ranges_.size() && ranges_[i].begin <= other.ranges_[j].begin);
    result.Add(mine ? ranges_[i++] : other.ranges_[j++]);
  }
  return result;
}

IntervalSet IntervalSet::Intersection(const IntervalSet& other) const {
  IntervalSet result;
  size_t i = 0;
  size_t j = 0;
  while (i < ranges_.size() && j < other.ranges_.size()) {
    const Range common = Intersect(ranges_[i], other.ranges_[j]);
    if (!common.empty()) result.ranges_.push_back(common);
    (ranges_[i].end < other.ranges_[j].end ? i : j)++;
  }
  return result;
}

IntervalSet IntervalSet::Difference(const IntervalSet& other) const {
  IntervalSet result;
  size_t j = 0;
  for (const Range& range : ranges_) {
    int64_t begin = range.begin;
    while (j < other.ranges_.size() && other.ranges_[j].end <= begin) ++j;
    for (size_t k = j; k < other.ranges_.size() && other.ranges_[k].begin < range.end; ++k) {
      result.Add({begin, other.ranges_[k].begin});
      begin = std::max(begin, other.ranges_[k].end);
    }
    result.Add({begin, range.end});
  }
  return result;
}

bool IntervalSet::Intersects(Range range) const {
  if (range.empty()) return false;
  const auto it = std::lower_bound(ranges_.begin(), ranges_.end(), range.begin,
                                   [](const Range& r, int64_t begin) { return r.end <= begin; });
  return it != ranges_.end() && it->begin < range.end;
}

int64_t IntervalSet::CountBefore(int64_t value) const {
  int64_t count = 0;
  for (const Range& range : ranges_) {
    if (range.begin >= value) break;
    count += std::min(range.end, value) - range.begin;
  }
  return count;
}

int64_t IntervalSet::size() const {
  int64_t total = 0;
  for (const Range& range : ranges_) total += range.size();
  return total;
}

}  // namespace tessera
