#include "partition/layout.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <numeric>
#include <queue>

namespace tessera {
namespace {

// Chunk i of `chunks` near-equal chunks; the first tokens mod chunks are one longer.
Range Chunk(int64_t tokens, int64_t chunks, int64_t i) {
  const int64_t base = tokens / chunks;
  const int64_t longer = tokens % chunks;
  const int64_t begin = i * base + std::min(i, longer);
  return {begin, begin + base + (i < longer ? 1 : 0)};
}

void Append(std::vector<Segment>& segments, Range tokens) {
  if (tokens.empty()) return;
  if (!segments.empty() && segments.back().stride == 1 && segments.back().last() + 1 == tokens.begin) {
    segments.back().count += tokens.size();
  } else {
    segments.push_back({tokens.begin, tokens.size(), 1});
  }
}

}  // namespace

Layout Layout::Contiguous(int64_t tokens, int ranks) {
  Layout layout;
  layout.tokens_ = tokens;
  layout.segments_.resize(ranks);
  for (int r = 0; r < ranks; ++r) Append(layout.segments_[r], Chunk(tokens, ranks, r));
  return layout;
}

Layout Layout::Zigzag(int64_t tokens, int ranks) {
  Layout layout;
  layout.tokens_ = tokens;
  layout.segments_.resize(ranks);
  for (int r = 0; r < ranks; ++r) {
    Append(layout.segments_[r], Chunk(tokens, 2 * ranks, r));
    Append(layout.segments_[r], Chunk(tokens, 2 * ranks, 2 * ranks - 1 - r));
  }
  return layout;
}

Layout Layout::Striped(int64_t tokens, int ranks) {
  Layout layout;
  layout.tokens_ = tokens;
  layout.segments_.resize(ranks);
  for (int64_t r = 0; r < std::min<int64_t>(ranks, tokens); ++r) {
    layout.segments_[r].push_back({r, (tokens - r + ranks - 1) / ranks, ranks});
  }
  return layout;
}

namespace {

struct Deal {
  std::vector<std::vector<int64_t>> chunks;  // per rank, ascending
  double most = 0;                           // area of the fullest rank
};

// Longest processing time first, with at most ceil(chunks / ranks) chunks a rank so that memory stays even as well.
Deal DealChunks(const std::vector<double>& area, int ranks) {
  const auto chunks = static_cast<int64_t>(area.size());
  std::vector<int64_t> order(chunks);
  std::iota(order.begin(), order.end(), int64_t{0});
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return area[a] > area[b]; });
  const int64_t limit = (chunks + ranks - 1) / ranks;
  using Load = std::pair<double, int>;
  std::priority_queue<Load, std::vector<Load>, std::greater<>> loads;
  for (int r = 0; r < ranks; ++r) loads.push({0.0, r});
  Deal deal{std::vector<std::vector<int64_t>>(ranks)};
  for (int64_t chunk : order) {
    const auto [load, rank] = loads.top();
    loads.pop();
    deal.chunks[rank].push_back(chunk);
    deal.most = std::max(deal.most, load + area[chunk]);
    if (static_cast<int64_t>(deal.chunks[rank].size()) < limit) loads.push({load + area[chunk], rank});
  }
  for (auto& owned : deal.chunks) std::sort(owned.begin(), owned.end());
  return deal;
}

}  // namespace

Layout Layout::Balanced(const Mask& mask, int64_t tokens, int ranks, int most_chunks_per_rank, double tolerance) {
  const double fair = mask.Area() / ranks;
  int64_t key_end = 0;
  for (const Band& band : mask.bands()) key_end = std::max(key_end, band.keys.end);
  Layout layout;
  layout.tokens_ = tokens;
  double best = std::numeric_limits<double>::infinity();
  // Fewer chunks mean longer runs of tokens and less traffic, so the first count that is even enough wins.
  for (int64_t per_rank = 1; per_rank <= most_chunks_per_rank && best > tolerance * fair; per_rank *= 2) {
    const int64_t chunks = std::max<int64_t>(1, std::min<int64_t>(tokens, int64_t{ranks} * per_rank));
    std::vector<double> area(chunks);
    for (int64_t i = 0; i < chunks; ++i) {
      const Range chunk = Chunk(tokens, chunks, i);
      area[i] = mask.Area({chunk.begin, chunk.size(), 1}, {0, key_end, 1});
    }
    const Deal deal = DealChunks(area, ranks);
    if (deal.most >= best) continue;
    best = deal.most;
    layout.segments_.assign(ranks, {});
    for (int r = 0; r < ranks; ++r) {
      for (int64_t chunk : deal.chunks[r]) Append(layout.segments_[r], Chunk(tokens, chunks, chunk));
    }
  }
  return layout;
}

StatusOr<Layout> Layout::FromSegments(int64_t tokens, std::vector<std::vector<Segment>> segments) {
  std::vector<Segment> all;
  int64_t owned = 0;
  for (size_t r = 0; r < segments.size(); ++r) {
    for (const Segment& s : segments[r]) {
      if (s.count < 1 || s.stride < 1 || s.begin < 0 || s.begin >= tokens ||
          (tokens - 1 - s.begin) / s.stride < s.count - 1) {
        return absl::InvalidArgumentError(absl::StrFormat(
            "layout: rank %d has a segment begin %d, count %d, stride %d; it must hold at least one token "
            "and lie in [0, %d)",
            r, s.begin, s.count, s.stride, tokens));
      }
      all.push_back(s);
      owned += s.count;
    }
  }
  if (owned != tokens) {
    return absl::InvalidArgumentError(
        absl::StrFormat("layout: segments hold %d tokens; each of the %d must be owned exactly once", owned, tokens));
  }
  std::vector<bool> seen(tokens);
  for (const Segment& s : all) {
    for (int64_t i = 0; i < s.count; ++i) {
      if (seen[s.token(i)]) {
        return absl::InvalidArgumentError(
            absl::StrFormat("layout: token %d is owned twice; each token must be owned exactly once", s.token(i)));
      }
      seen[s.token(i)] = true;
    }
  }
  Layout layout;
  layout.tokens_ = tokens;
  layout.segments_ = std::move(segments);
  return layout;
}

int64_t Layout::rows(int rank) const {
  int64_t rows = 0;
  for (const Segment& segment : segments_[rank]) rows += segment.count;
  return rows;
}

GlobalToken Layout::ToGlobal(int rank, LocalToken row) const {
  int64_t remaining = static_cast<int64_t>(row);
  for (const Segment& segment : segments_[rank]) {
    if (remaining < segment.count) return GlobalToken{segment.token(remaining)};
    remaining -= segment.count;
  }
  return GlobalToken{-1};
}

IntervalSet Layout::RowsOf(int rank, const IntervalSet& tokens) const {
  IntervalSet rows;
  int64_t first_row = 0;
  for (const Segment& segment : segments_[rank]) {
    const auto ranges = tokens.ranges();
    auto it = std::lower_bound(ranges.begin(), ranges.end(), segment.begin,
                               [](const Range& r, int64_t begin) { return r.end <= begin; });
    for (; it != ranges.end() && it->begin <= segment.last(); ++it) {
      const Range within = RowsWithin(segment, *it);
      if (!within.empty()) rows.Add({first_row + within.begin, first_row + within.end});
    }
    first_row += segment.count;
  }
  return rows;
}

std::vector<Segment> SegmentsOfRows(std::span<const Segment> segments, Range rows) {
  std::vector<Segment> result;
  int64_t first_row = 0;
  for (const Segment& segment : segments) {
    const Range within = Intersect({rows.begin - first_row, rows.end - first_row}, {0, segment.count});
    if (!within.empty()) result.push_back(Rows(segment, within));
    first_row += segment.count;
  }
  return result;
}

}  // namespace tessera
