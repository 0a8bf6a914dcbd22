// Which global tokens each rank owns, as segments in the order of the rank's local rows.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "partition/interval_set.h"
#include "partition/mask.h"
#include "runtime/base/geometry.h"
#include "runtime/base/status.h"

namespace tessera {

enum class LayoutKind : uint8_t { kContiguous, kZigzag, kStriped, kBalanced };

class Layout {
 public:
  Layout() = default;

  // Rank r owns one chunk; the first tokens mod P ranks own one token more.
  static Layout Contiguous(int64_t tokens, int ranks);
  // 2P chunks; rank r owns chunks r and 2P - 1 - r, which balances causal work.
  static Layout Zigzag(int64_t tokens, int ranks);
  // Rank r owns tokens r, r + P, r + 2P, ...
  static Layout Striped(int64_t tokens, int ranks);
  // Cuts the query axis into 1, 2, 4, ... chunks per rank, until dealing them out gives no rank more than `tolerance`
  // times the mean mask area (or the best of up to `most_chunks_per_rank`).
  static Layout Balanced(const Mask& mask, int64_t tokens, int ranks, int most_chunks_per_rank = 64,
                         double tolerance = 1.05);
  // Any assignment. InvalidArgument unless every token of [0, tokens) is owned exactly once.
  static StatusOr<Layout> FromSegments(int64_t tokens, std::vector<std::vector<Segment>> segments);

  int64_t tokens() const { return tokens_; }
  int ranks() const { return static_cast<int>(segments_.size()); }
  std::span<const Segment> segments(int rank) const { return segments_[rank]; }
  int64_t rows(int rank) const;  // tokens the rank owns

  GlobalToken ToGlobal(int rank, LocalToken row) const;
  // Local rows of `rank` whose tokens are in `tokens`, merged.
  IntervalSet RowsOf(int rank, const IntervalSet& tokens) const;
  friend bool operator==(const Layout&, const Layout&) = default;

 private:
  int64_t tokens_ = 0;
  std::vector<std::vector<Segment>> segments_;
};

// The segments of local rows `rows` of a shard made of `segments`, cut where a segment ends.
std::vector<Segment> SegmentsOfRows(std::span<const Segment> segments, Range rows);

}  // namespace tessera
