#include "partition/needs.h"

#include <algorithm>

namespace tessera {
namespace {

// Union over the rows of `segment` of [token + low, token + high], within `limit`.
void AddReach(const Segment& segment, int64_t low, int64_t high, Range limit, IntervalSet& result) {
  if (segment.empty()) return;
  if (segment.stride <= high - low + 1) {
    result.Add(Intersect(limit, {segment.begin + low, segment.last() + high + 1}));
    return;
  }
  for (int64_t i = 0; i < segment.count; ++i) {
    result.Add(Intersect(limit, {segment.token(i) + low, segment.token(i) + high + 1}));
  }
}

}  // namespace

MaskIndex::MaskIndex(const Mask& mask) : bands_(mask.bands().begin(), mask.bands().end()) {
  int64_t end = 0;
  for (const Band& band : bands_) queries_end_.push_back(end = std::max(end, band.queries.end));
}

std::span<const Band> MaskIndex::BandsFor(Range queries) const {
  const auto last = std::lower_bound(bands_.begin(), bands_.end(), queries.end,
                                     [](const Band& band, int64_t end) { return band.queries.begin < end; });
  const auto first = std::upper_bound(queries_end_.begin(), queries_end_.end(), queries.begin);
  const auto begin = first - queries_end_.begin();
  const auto end = last - bands_.begin();
  return begin < end ? std::span(bands_).subspan(begin, end - begin) : std::span<const Band>();
}

IntervalSet MaskIndex::KeysFor(std::span<const Segment> queries) const {
  IntervalSet keys;
  for (const Segment& segment : queries) {
    if (segment.empty()) continue;
    for (const Band& band : BandsFor({segment.begin, segment.last() + 1})) {
      AddReach(Rows(segment, RowsWithin(segment, band.queries)), band.min_offset, band.max_offset, band.keys, keys);
    }
  }
  return keys;
}

IntervalSet MaskIndex::QueriesFor(std::span<const Segment> keys) const {
  IntervalSet queries;
  for (const Segment& segment : keys) {
    for (const Band& band : bands_) {
      AddReach(Rows(segment, RowsWithin(segment, band.keys)), -band.max_offset, -band.min_offset, band.queries,
               queries);
    }
  }
  return queries;
}

bool MaskIndex::AnyPair(const Segment& queries, const Segment& keys) const {
  if (queries.empty() || keys.empty()) return false;
  const auto bands = BandsFor({queries.begin, queries.last() + 1});
  return std::any_of(bands.begin(), bands.end(), [&](const Band& band) { return BandArea(band, queries, keys) > 0; });
}

}  // namespace tessera
