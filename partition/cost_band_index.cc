#include "partition/cost_band_index.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace tessera {
namespace {

// Visits the bands whose range on the axis meets `span`.
template <typename Axis, typename RangeOf, typename Visit>
void VisitBands(const Axis& axis, Range span, RangeOf range_of, Visit visit) {
  const auto end = std::partition_point(axis.bands.begin(), axis.bands.end(),
                                        [&](const Band& band) { return range_of(band).begin < span.end; });
  for (auto i = end - axis.bands.begin() - 1; i >= 0 && axis.reach[i] > span.begin; --i) {
    if (range_of(axis.bands[i]).end > span.begin) visit(axis.bands[i]);
  }
}
constexpr auto kQueriesOf = [](const Band& band) { return band.queries; };
constexpr auto kKeysOf = [](const Band& band) { return band.keys; };
Range Hull(const Segment& segment) {
  return {segment.begin, segment.last() + 1};
}

// The union of [t + low, t + high] over the tokens t of `segment` within `within`, clipped to `clip`.
void AppendShifted(const Segment& segment, Range within, int64_t low, int64_t high, Range clip,
                   std::vector<Range>* out) {
  const Range rows = RowsWithin(segment, within);
  if (rows.empty() || low > high) return;
  const auto append = [&](Range range) {
    range = Intersect(range, clip);
    if (!range.empty()) out->push_back(range);
  };
  if (high - low + 1 >= segment.stride || rows.size() == 1) {
    append({segment.token(rows.begin) + low, segment.token(rows.end - 1) + high + 1});
    return;
  }
  for (int64_t row = rows.begin; row < rows.end; ++row)
    append({segment.token(row) + low, segment.token(row) + high + 1});
}

}  // namespace

BandIndex::BandIndex(std::span<const Band> bands) {
  const auto build = [&](Axis& axis, auto range_of) {
    axis.bands.assign(bands.begin(), bands.end());
    std::stable_sort(axis.bands.begin(), axis.bands.end(),
                     [&](const Band& a, const Band& b) { return range_of(a).begin < range_of(b).begin; });
    int64_t reach = 0;
    for (const Band& band : axis.bands) axis.reach.push_back(reach = std::max(reach, range_of(band).end));
  };
  build(by_query_, kQueriesOf);
  build(by_key_, kKeysOf);
}

double BandIndex::Area(const Segment& queries, const Segment& keys) const {
  if (queries.empty() || keys.empty()) return 0;
  double area = 0;
  const Range key_hull = Hull(keys);
  VisitBands(by_query_, Hull(queries), kQueriesOf, [&](const Band& band) {
    if (!Intersect(band.keys, key_hull).empty()) area += BandArea(band, queries, keys);
  });
  return area;
}

bool BandIndex::Allows(int64_t query, int64_t key) const {
  bool allows = false;
  VisitBands(by_query_, {query, query + 1}, kQueriesOf,
             [&](const Band& band) { allows = allows || band.Allows(query, key); });
  return allows;
}

void BandIndex::AppendKeysOf(const Segment& queries, std::vector<Range>* keys) const {
  if (queries.empty()) return;
  VisitBands(by_query_, Hull(queries), kQueriesOf, [&](const Band& band) {
    AppendShifted(queries, band.queries, band.min_offset, band.max_offset, band.keys, keys);
  });
}

void BandIndex::AppendQueriesOf(const Segment& keys, std::vector<Range>* queries) const {
  if (keys.empty()) return;
  VisitBands(by_key_, Hull(keys), kKeysOf, [&](const Band& band) {
    AppendShifted(keys, band.keys, -band.max_offset, -band.min_offset, band.queries, queries);
  });
}

std::vector<Band> Transposed(std::span<const Band> bands) {
  std::vector<Band> transposed;
  for (const Band& band : bands) transposed.push_back({band.keys, band.queries, -band.max_offset, -band.min_offset});
  return transposed;
}

IntervalSet UnionOf(std::vector<Range> ranges) {
  std::sort(ranges.begin(), ranges.end(), [](Range a, Range b) { return a.begin < b.begin; });
  IntervalSet set;
  for (const Range range : ranges) set.Add(range);
  return set;
}

Segment CommonTokens(const Segment& a, const Segment& b) {
  if (a.empty() || b.empty()) return {};
  const int64_t begin = std::max(a.begin, b.begin), last = std::min(a.last(), b.last());
  const int64_t gcd = std::gcd(a.stride, b.stride);
  if (begin > last || (b.begin - a.begin) % gcd != 0) return {};
  // Solve a.begin + i * a.stride = b.begin (mod b.stride) for the least i >= 0: i = difference * inverse.
  const int64_t modulus = b.stride / gcd;
  int64_t old_r = (a.stride / gcd) % modulus, r = modulus, inverse = 1, s = 0;
  while (r != 0) {
    const int64_t quotient = old_r / r;
    std::swap(old_r, r);
    r -= quotient * old_r;
    std::swap(inverse, s);
    s -= quotient * inverse;
  }
  const auto mod = [&](int64_t value) { return ((value % modulus) + modulus) % modulus; };
  const auto product = static_cast<__int128>(mod((b.begin - a.begin) / gcd)) * mod(inverse);
  const int64_t row = static_cast<int64_t>(product % modulus);
  const int64_t stride = a.stride * modulus;
  int64_t first = a.begin + row * a.stride;
  if (first < begin) first += (begin - first + stride - 1) / stride * stride;
  if (first > last) return {};
  return {first, (last - first) / stride + 1, stride};
}

}  // namespace tessera
