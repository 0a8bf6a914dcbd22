#include "partition/mask.h"

#include <algorithm>
#include <numeric>

namespace tessera {
namespace {

std::string RangeText(Range range) {
  return absl::StrFormat("[%d, %d)", range.begin, range.end);
}

Status CheckRange(size_t slice, const char* axis, Range range, int64_t tokens) {
  if (range.begin < 0 || range.end < range.begin || range.end > tokens) {
    return absl::InvalidArgumentError(
        absl::StrFormat("mask: slice %d has %s range %s; it must satisfy 0 <= begin <= end <= %d", slice, axis,
                        RangeText(range), tokens));
  }
  return absl::OkStatus();
}

// The band of a slice, or an empty one. Offsets are tightened to what the ranges can reach and left unbounded where
// they do not cut, so that equal masks compare equal however they were written.
Band ToBand(const MaskSlice& slice, Window window) {
  Band band{slice.queries, slice.keys};
  if (band.queries.empty() || band.keys.empty()) return {};
  const bool causal = slice.type == SliceType::kCausal || slice.type == SliceType::kBiCausal;
  const bool inverse = slice.type == SliceType::kInverseCausal || slice.type == SliceType::kBiCausal;
  const int64_t bottom_right = slice.keys.end - slice.queries.end;
  const int64_t top_left = slice.keys.begin - slice.queries.begin;
  if (causal) band.max_offset = bottom_right;
  if (inverse) band.min_offset = top_left;
  if (window.left >= 0) band.min_offset = std::max(band.min_offset, bottom_right - window.left);
  if (window.right >= 0) band.max_offset = std::min(band.max_offset, bottom_right + window.right);
  const int64_t lowest = band.keys.begin - (band.queries.end - 1);
  const int64_t highest = band.keys.end - 1 - band.queries.begin;
  if (band.min_offset > band.max_offset || band.min_offset > highest || band.max_offset < lowest) return {};
  if (band.min_offset <= lowest) band.min_offset = -kUnboundedDiagonal;
  if (band.max_offset >= highest) band.max_offset = kUnboundedDiagonal;
  return band;
}

bool Overlap(const Band& a, const Band& b) {
  const Range queries = Intersect(a.queries, b.queries);
  const Range keys = Intersect(a.keys, b.keys);
  if (queries.empty() || keys.empty()) return false;
  // k - q takes every integer between these two over a rectangle.
  const int64_t lowest = keys.begin - (queries.end - 1);
  const int64_t highest = keys.end - 1 - queries.begin;
  return std::max({a.min_offset, b.min_offset, lowest}) <= std::min({a.max_offset, b.max_offset, highest});
}

// Sum over i in [0, n) of clamp(first + i * step, 0, most); step > 0.
double SumOfClamped(int64_t first, int64_t step, int64_t n, int64_t most) {
  const auto ceil_div = [](int64_t a, int64_t b) { return a >= 0 ? (a + b - 1) / b : -((-a) / b); };
  const int64_t positive = std::clamp<int64_t>(ceil_div(1 - first, step), 0, n);  // first i with value >= 1
  const int64_t saturated =
      std::clamp<int64_t>(ceil_div(most - first, step), positive, n);  // first i with value >= most
  const double ramp = static_cast<double>(saturated - positive);
  const double ramp_sum =
      ramp * static_cast<double>(first) +
      static_cast<double>(step) * ramp * (static_cast<double>(positive) + static_cast<double>(saturated) - 1) / 2;
  return ramp_sum + static_cast<double>(n - saturated) * static_cast<double>(most);
}

// Pairs of the two segments with k - q <= offset.
double AreaBelow(const Segment& queries, const Segment& keys, int64_t offset) {
  const auto floor_div = [](int64_t a, int64_t b) { return a >= 0 ? a / b : -((-a + b - 1) / b); };
  const int64_t reach = queries.begin + offset - keys.begin;
  // The number of keys seen by query row i is clamp(floor((reach + i * q_stride) / k_stride) + 1, 0, count), a plain
  // progression when the strides match or the keys are dense.
  if (keys.stride == 1) return SumOfClamped(reach + 1, queries.stride, queries.count, keys.count);
  if (keys.stride == queries.stride) {
    return SumOfClamped(floor_div(reach, keys.stride) + 1, 1, queries.count, keys.count);
  }
  double area = 0;
  for (int64_t i = 0; i < queries.count; ++i) {
    area +=
        static_cast<double>(std::clamp<int64_t>(floor_div(reach + i * queries.stride, keys.stride) + 1, 0, keys.count));
  }
  return area;
}

}  // namespace

double BandArea(const Band& band, const Segment& queries, const Segment& keys) {
  const Range query_rows = RowsWithin(queries, band.queries);
  const Range key_rows = RowsWithin(keys, band.keys);
  if (query_rows.empty() || key_rows.empty()) return 0;
  const Segment q = Rows(queries, query_rows);
  const Segment k = Rows(keys, key_rows);
  return AreaBelow(q, k, band.max_offset) - AreaBelow(q, k, band.min_offset - 1);
}

StatusOr<Mask> Mask::FromSlices(int64_t query_tokens, int64_t key_tokens, std::span<const MaskSlice> slices,
                                Window window) {
  if (query_tokens < 0 || key_tokens < 0) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "mask: lengths are %d query and %d key tokens; they must not be negative", query_tokens, key_tokens));
  }
  Mask mask;
  std::vector<size_t> source;
  for (size_t i = 0; i < slices.size(); ++i) {
    TESSERA_RETURN_IF_ERROR(CheckRange(i, "query", slices[i].queries, query_tokens));
    TESSERA_RETURN_IF_ERROR(CheckRange(i, "key", slices[i].keys, key_tokens));
    const Band band = ToBand(slices[i], window);
    if (band.queries.empty()) continue;
    mask.bands_.push_back(band);
    source.push_back(i);
  }
  // A sweep over query ranges: only bands that are open at the same query can share a pair.
  std::vector<size_t> order(mask.bands_.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    const Band& x = mask.bands_[a];
    const Band& y = mask.bands_[b];
    return std::pair(x.queries.begin, x.keys.begin) < std::pair(y.queries.begin, y.keys.begin);
  });
  std::vector<size_t> open;
  for (size_t next : order) {
    const Band& band = mask.bands_[next];
    std::erase_if(open, [&](size_t other) { return mask.bands_[other].queries.end <= band.queries.begin; });
    for (size_t other : open) {
      if (!Overlap(mask.bands_[other], band)) continue;
      const auto [first, second] = std::minmax(source[other], source[next]);
      return absl::InvalidArgumentError(absl::StrFormat(
          "mask: slices %d and %d overlap: queries %s and %s, keys %s and %s share a (query, key) pair; slices must be "
          "disjoint",
          first, second, RangeText(slices[first].queries), RangeText(slices[second].queries),
          RangeText(slices[first].keys), RangeText(slices[second].keys)));
    }
    open.push_back(next);
  }
  std::vector<Band> sorted;
  for (size_t next : order) sorted.push_back(mask.bands_[next]);
  mask.bands_ = std::move(sorted);
  return mask;
}

StatusOr<Mask> Mask::Full(int64_t query_tokens, int64_t key_tokens) {
  const MaskSlice slice{{0, query_tokens}, {0, key_tokens}, SliceType::kFull};
  return FromSlices(query_tokens, key_tokens, {&slice, 1});
}

StatusOr<Mask> Mask::Causal(int64_t query_tokens, int64_t key_tokens, Window window) {
  const MaskSlice slice{{0, query_tokens}, {0, key_tokens}, SliceType::kCausal};
  return FromSlices(query_tokens, key_tokens, {&slice, 1}, window);
}

StatusOr<Mask> Mask::Documents(int64_t tokens, std::span<const int64_t> boundaries, SliceType type, Window window) {
  if (boundaries.empty() || boundaries.front() != 0 || boundaries.back() != tokens) {
    return absl::InvalidArgumentError(
        absl::StrFormat("document boundaries run from %s to %s; they must start at 0 and end at the length, %d",
                        boundaries.empty() ? "nothing" : absl::StrCat(boundaries.front()),
                        boundaries.empty() ? "nothing" : absl::StrCat(boundaries.back()), tokens));
  }
  std::vector<MaskSlice> slices;
  for (size_t i = 0; i + 1 < boundaries.size(); ++i) {
    const Range document{boundaries[i], boundaries[i + 1]};
    if (document.end < document.begin || document.begin < 0 || document.end > tokens) {
      return absl::InvalidArgumentError(
          absl::StrFormat("document boundary %d is %d after %d; boundaries must not decrease and must lie in [0, %d]",
                          i + 1, document.end, document.begin, tokens));
    }
    if (!document.empty()) slices.push_back({document, document, type});
  }
  return FromSlices(tokens, tokens, slices, window);
}

double Mask::Area(const Segment& queries, const Segment& keys) const {
  double area = 0;
  for (const Band& band : bands_) area += BandArea(band, queries, keys);
  return area;
}

double Mask::Area() const {
  double area = 0;
  for (const Band& band : bands_) {
    area += BandArea(band, {band.queries.begin, band.queries.size()}, {band.keys.begin, band.keys.size()});
  }
  return area;
}

}  // namespace tessera
