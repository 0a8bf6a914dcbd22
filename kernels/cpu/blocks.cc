#include "kernels/cpu/blocks.h"

#include <algorithm>
#include <map>
#include <tuple>

namespace tessera::cpu {
namespace {

// Sorts the ranges from `first` on and joins those that touch.
void SortAndJoin(std::vector<Range>* ranges, size_t first) {
  const auto begin = ranges->begin() + static_cast<ptrdiff_t>(first);
  if (ranges->end() - begin < 2) return;
  std::sort(begin, ranges->end(), [](Range a, Range b) { return a.begin < b.begin; });
  auto last = begin;
  for (auto it = begin + 1; it != ranges->end(); ++it) {
    if (it->begin <= last->end) {
      last->end = std::max(last->end, it->end);
    } else {
      *++last = *it;
    }
  }
  ranges->erase(last + 1, ranges->end());
}

}  // namespace

std::vector<std::vector<QueryGroup>> Waves(std::span<const Tile> tiles) {
  std::vector<QueryGroup> groups;
  std::map<std::tuple<int64_t, int64_t, int64_t, int64_t>, size_t> known;
  for (const Tile& tile : tiles) {
    if (tile.queries.empty() || tile.keys.empty()) continue;
    const auto [it, added] =
        known.try_emplace({tile.query_row, tile.queries.begin, tile.queries.count, tile.queries.stride}, groups.size());
    if (added) groups.push_back({tile.query_row, tile.queries, {}});
    groups[it->second].keys.push_back({tile.key_row, tile.keys});
  }
  std::vector<std::vector<QueryGroup>> waves;
  std::map<int64_t, int64_t> taken;  // rows of the current wave: begin -> end
  for (QueryGroup& group : groups) {
    const int64_t begin = group.first_row, end = begin + group.queries.count;
    const auto after = taken.lower_bound(end);
    const bool meets = after != taken.begin() && std::prev(after)->second > begin;
    if (waves.empty() || meets) {
      waves.emplace_back();
      taken.clear();
    }
    taken[begin] = end;
    waves.back().push_back(std::move(group));
  }
  return waves;
}

Range KeyRowsMet(const Band& band, const Segment& queries, const Segment& keys) {
  const Range tokens = Intersect(band.queries, {queries.begin, queries.last() + 1});
  if (tokens.empty()) return {};
  return RowsWithin(keys, Intersect(band.keys, {tokens.begin + band.min_offset, tokens.end + band.max_offset}));
}

void RowMask::Reset(std::span<const Band> bands, const Segment& queries, const Segment& keys) {
  bands_.clear();
  ranges_.clear();
  first_.assign(1, 0);
  outer_.clear();
  inner_.clear();
  key_blocks_.clear();
  for (const Band& band : bands) {
    const Range rows = KeyRowsMet(band, queries, keys);
    if (rows.empty()) continue;
    bands_.push_back(band);
    key_blocks_.push_back({rows.begin / kKeyBlock, (rows.end - 1) / kKeyBlock + 1});
  }
  SortAndJoin(&key_blocks_, 0);
  for (int64_t row = 0; row < queries.count; ++row) {
    for (const Band& band : bands_) {
      const Range rows = RowsWithin(keys, band.KeysOf(queries.token(row)));
      if (!rows.empty()) ranges_.push_back(rows);
    }
    const size_t first = first_.back();
    SortAndJoin(&ranges_, first);
    const size_t count = ranges_.size() - first;
    outer_.push_back(count == 0 ? Range{} : Range{ranges_[first].begin, ranges_.back().end});
    inner_.push_back(count == 1 ? ranges_[first] : Range{});
    first_.push_back(ranges_.size());
  }
}

uint64_t RowMask::Bits(int64_t row, int64_t first_key) const {
  const auto end = ranges_.begin() + static_cast<ptrdiff_t>(first_[row + 1]);
  auto it = std::partition_point(ranges_.begin() + static_cast<ptrdiff_t>(first_[row]), end,
                                 [&](Range r) { return r.end <= first_key; });
  uint64_t bits = 0;
  for (; it != end && it->begin < first_key + kKeyBlock; ++it) {
    const int64_t low = std::max<int64_t>(it->begin - first_key, 0);
    const int64_t count = std::min<int64_t>(it->end - first_key, kKeyBlock) - low;
    bits |= (~uint64_t{0} >> (kKeyBlock - count)) << low;
  }
  return bits;
}

}  // namespace tessera::cpu
