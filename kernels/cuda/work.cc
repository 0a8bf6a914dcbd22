#include "kernels/cuda/work.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>

namespace tessera::cuda {
namespace {

// Tiles and bands turned so that "queries" is the side that blocks own.
Tile Turned(const Tile& tile, Side side) {
  if (side == Side::kQueries) return tile;
  return {tile.key_row, tile.keys, tile.query_row, tile.queries};
}
Band Turned(const Band& band, Side side) {
  if (side == Side::kQueries) return band;
  return {band.keys, band.queries, -band.max_offset, -band.min_offset};
}

Status CheckSegment(const char* what, int64_t first_row, const Segment& segment) {
  // A block is at most 2^8 rows, so its tokens relative to its first stay below 2^31.
  constexpr int64_t kMostStride = 1 << 22;
  if (segment.begin < 0 || segment.last() >= kTokenLimit) {
    return absl::InvalidArgumentError(absl::StrCat("cuda attention: ", what, " tokens are [", segment.begin, ", ",
                                                   segment.last() + 1, "); they must lie in [0, 2^30)"));
  }
  if (segment.stride < 1 || segment.stride > kMostStride) {
    return absl::InvalidArgumentError(absl::StrCat("cuda attention: the stride of ", what, " tokens is ",
                                                   segment.stride, "; it must be in [1, 2^22]"));
  }
  if (first_row < 0 || first_row + segment.count > std::numeric_limits<int32_t>::max()) {
    return absl::InvalidArgumentError(absl::StrCat("cuda attention: ", what, " rows are [", first_row, ", ",
                                                   first_row + segment.count, "); they must lie in [0, 2^31)"));
  }
  return absl::OkStatus();
}

int32_t Clamped(int64_t token) {
  return static_cast<int32_t>(std::clamp<int64_t>(token, -kTokenLimit, kTokenLimit));
}

// A band between some block rows and one segment, in numbers of run_rows-sized pieces of the segment.
struct Meeting {
  int32_t band;
  Range some;  // pieces outside of which nothing meets
  Range all;   // pieces of which every row meets every block row
};

Meeting Meet(const Band& band, int32_t number, const Segment& block, const Segment& segment, int64_t run_rows) {
  Meeting meeting{number, {}, {}};
  const Range tokens = Intersect(band.queries, {block.begin, block.last() + 1});
  if (tokens.empty()) return meeting;
  const Range some =
      RowsWithin(segment, Intersect(band.keys, {tokens.begin + band.min_offset, tokens.end + band.max_offset}));
  if (some.empty()) return meeting;
  meeting.some = {some.begin / run_rows, (some.end - 1) / run_rows + 1};
  if (block.begin < band.queries.begin || block.last() >= band.queries.end) return meeting;
  const Range all =
      RowsWithin(segment, Intersect(band.keys, {block.last() + band.min_offset, block.begin + band.max_offset + 1}));
  if (all.empty()) return meeting;
  meeting.all = {(all.begin + run_rows - 1) / run_rows,
                 all.end == segment.count ? (all.end - 1) / run_rows + 1 : all.end / run_rows};
  return meeting;
}

class Planner {
 public:
  Planner(std::span<const Band> bands, Side side, int block_rows, int run_rows)
      : block_rows_(block_rows), run_rows_(run_rows) {
    for (const Band& band : bands) {
      if (band.queries.empty() || band.keys.empty() || band.min_offset > band.max_offset) continue;
      bands_.push_back(Turned(band, side));
      const Band& b = bands_.back();
      lists_.bands.push_back({Clamped(b.queries.begin), Clamped(b.queries.end), Clamped(b.keys.begin),
                              Clamped(b.keys.end), Clamped(b.min_offset), Clamped(b.max_offset)});
    }
  }

  // Rows [rows.begin, rows.end), wholly owned by each of `tiles`.
  void AddPiece(Range rows, std::span<const Tile> all, std::span<const int32_t> tiles) {
    for (int64_t begin = rows.begin; begin < rows.end; begin += block_rows_) {
      const Range block_rows{begin, std::min(begin + block_rows_, rows.end)};
      RowBlock block{static_cast<int32_t>(begin), static_cast<int32_t>(block_rows.size()),
                     static_cast<int32_t>(lists_.runs.size()), 0};
      for (int32_t number : tiles) {
        const Tile& tile = all[number];
        const Segment own = Rows(tile.queries, {block_rows.begin - tile.query_row, block_rows.end - tile.query_row});
        AddRuns(own, tile.key_row, tile.keys);
      }
      block.runs = static_cast<int32_t>(lists_.runs.size()) - block.first_run;
      if (block.runs > 0) lists_.blocks.push_back(block);
    }
  }

  // Longest first, so that the last thread blocks to start are short; equal ones keep their order.
  WorkLists Take() && {
    std::vector<int64_t> cost(lists_.blocks.size());
    for (size_t i = 0; i < cost.size(); ++i) {
      const RowBlock& block = lists_.blocks[i];
      for (int32_t r = 0; r < block.runs; ++r) cost[i] += lists_.runs[block.first_run + r].rows;
    }
    std::vector<int32_t> order(cost.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return cost[a] > cost[b]; });
    std::vector<RowBlock> sorted;
    for (int32_t i : order) sorted.push_back(lists_.blocks[i]);
    lists_.blocks = std::move(sorted);
    return std::move(lists_);
  }

 private:
  void AddRuns(const Segment& own, int64_t first_row, const Segment& segment) {
    meetings_.clear();
    cuts_.clear();
    for (size_t b = 0; b < bands_.size(); ++b) {
      const Meeting meeting = Meet(bands_[b], static_cast<int32_t>(b), own, segment, run_rows_);
      if (meeting.some.empty()) continue;
      meetings_.push_back(meeting);
      for (const Range& range : {meeting.some, meeting.all}) {
        if (!range.empty()) cuts_.insert(cuts_.end(), {range.begin, range.end});
      }
    }
    std::sort(cuts_.begin(), cuts_.end());
    cuts_.erase(std::unique(cuts_.begin(), cuts_.end()), cuts_.end());
    const size_t first_run = lists_.runs.size();
    for (size_t i = 0; i + 1 < cuts_.size(); ++i) {
      const int64_t piece = cuts_[i];
      const auto within = [piece](Range range) { return range.begin <= piece && piece < range.end; };
      const bool full =
          std::any_of(meetings_.begin(), meetings_.end(), [&](const Meeting& m) { return within(m.all); });
      const size_t first_band = lists_.band_numbers.size();
      bool met = full;
      for (const Meeting& meeting : meetings_) {
        if (full || !within(meeting.some)) continue;
        lists_.band_numbers.push_back(meeting.band);
        met = true;
      }
      if (!met) continue;
      const int64_t begin = piece * run_rows_, end = std::min(cuts_[i + 1] * run_rows_, segment.count);
      Run run{static_cast<int32_t>(first_row + begin),
              static_cast<int32_t>(end - begin),
              static_cast<int32_t>(segment.token(begin)),
              static_cast<int32_t>(segment.stride),
              static_cast<int32_t>(own.begin),
              static_cast<int32_t>(own.stride),
              static_cast<int32_t>(first_band),
              static_cast<int32_t>(lists_.band_numbers.size() - first_band)};
      if (lists_.runs.size() > first_run && Joins(lists_.runs.back(), run)) {
        lists_.band_numbers.resize(first_band);
        lists_.runs.back().rows += run.rows;
      } else {
        lists_.runs.push_back(run);
      }
    }
  }

  bool Joins(const Run& a, const Run& b) const {
    if (a.first_row + a.rows != b.first_row || a.bands != b.bands) return false;
    const auto numbers = lists_.band_numbers.begin();
    return std::equal(numbers + a.first_band, numbers + a.first_band + a.bands, numbers + b.first_band);
  }

  const int64_t block_rows_, run_rows_;
  std::vector<Band> bands_;
  WorkLists lists_;
  std::vector<Meeting> meetings_;
  std::vector<int64_t> cuts_;
};

}  // namespace

StatusOr<WorkLists> PlanWork(std::span<const Tile> tiles, std::span<const Band> bands, Side side, int block_rows,
                             int run_rows) {
  std::vector<Tile> turned;
  std::vector<int64_t> cuts;
  for (const Tile& tile : tiles) {
    if (tile.queries.empty() || tile.keys.empty()) continue;
    TESSERA_RETURN_IF_ERROR(CheckSegment("query", tile.query_row, tile.queries));
    TESSERA_RETURN_IF_ERROR(CheckSegment("key", tile.key_row, tile.keys));
    turned.push_back(Turned(tile, side));
    cuts.insert(cuts.end(), {turned.back().query_row, turned.back().query_row + turned.back().queries.count});
  }
  // Rows cut so that every tile owns whole pieces: then one block can take all that a row meets, however tiles overlap.
  std::sort(cuts.begin(), cuts.end());
  cuts.erase(std::unique(cuts.begin(), cuts.end()), cuts.end());
  std::vector<std::vector<int32_t>> owners(cuts.size());
  for (size_t t = 0; t < turned.size(); ++t) {
    const auto number = [&](int64_t row) { return std::lower_bound(cuts.begin(), cuts.end(), row) - cuts.begin(); };
    const auto end = number(turned[t].query_row + turned[t].queries.count);
    for (auto piece = number(turned[t].query_row); piece < end; ++piece)
      owners[piece].push_back(static_cast<int32_t>(t));
  }
  Planner planner(bands, side, block_rows, run_rows);
  for (size_t piece = 0; piece + 1 < cuts.size(); ++piece) {
    planner.AddPiece({cuts[piece], cuts[piece + 1]}, turned, owners[piece]);
  }
  return std::move(planner).Take();
}

TileRows RowsOf(std::span<const Tile> tiles) {
  TileRows rows;
  for (const Tile& tile : tiles) {
    if (tile.queries.empty() || tile.keys.empty()) continue;
    rows.queries = std::max(rows.queries, tile.query_row + tile.queries.count);
    rows.keys = std::max(rows.keys, tile.key_row + tile.keys.count);
  }
  return rows;
}

WorkLayout AppendWork(const WorkLists& lists, std::vector<std::byte>* bytes) {
  const auto append = [bytes](const auto& list) {
    bytes->resize((bytes->size() + 15) / 16 * 16);
    const auto offset = static_cast<int64_t>(bytes->size());
    const size_t size = list.size() * sizeof(list[0]);
    bytes->resize(bytes->size() + size);
    if (size > 0) std::memcpy(bytes->data() + offset, list.data(), size);
    return offset;
  };
  WorkLayout layout;
  layout.blocks = append(lists.blocks);
  layout.runs = append(lists.runs);
  layout.band_numbers = append(lists.band_numbers);
  layout.bands = append(lists.bands);
  layout.block_count = static_cast<int32_t>(lists.blocks.size());
  return layout;
}

}  // namespace tessera::cuda
