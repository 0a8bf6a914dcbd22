#include "partition/planner_context.h"

#include <algorithm>

namespace tessera {
namespace {

// Ownership per sequence rank: the shards of a head group one after the other.
Layout MergeHeadGroups(const Layout& layout, const Mesh& mesh) {
  if (mesh.head_ranks == 1) return layout;
  std::vector<std::vector<Segment>> merged(mesh.sequence_ranks());
  for (int rank = 0; rank < mesh.size(); ++rank) {
    auto& shard = merged[mesh.sequence_of(rank)];
    for (const Segment& segment : layout.segments(rank)) {
      // Neighbours in a head group usually hold neighbouring tokens: fewer segments mean fewer tiles.
      if (!shard.empty() && shard.back().stride == segment.stride &&
          shard.back().token(shard.back().count) == segment.begin) {
        shard.back().count += segment.count;
      } else {
        shard.push_back(segment);
      }
    }
  }
  return Layout::FromSegments(layout.tokens(), std::move(merged)).value();  // a regrouping of a valid layout is valid
}

}  // namespace

PlannerContext::PlannerContext(const PlanSpec& plan_spec)
    : spec(plan_spec),
      index(plan_spec.problem.mask),
      sequence_ranks(plan_spec.mesh.sequence_ranks()),
      query_layout(MergeHeadGroups(plan_spec.query_layout, plan_spec.mesh)),
      key_layout(MergeHeadGroups(plan_spec.key_layout, plan_spec.mesh)) {
  for (int s = 0; s < sequence_ranks; ++s) needed_keys.push_back(index.KeysFor(query_layout.segments(s)));
  FindNeeds();
}

void PlannerContext::FindNeeds() {
  struct Owned {
    Range tokens;  // the hull of a segment
    int owner;
    bool dense;
  };
  std::vector<Owned> owned;
  int64_t longest = 0;
  for (int s = 0; s < sequence_ranks; ++s) {
    for (const Segment& segment : key_layout.segments(s)) {
      owned.push_back({{segment.begin, segment.last() + 1}, s, segment.stride == 1});
      longest = std::max(longest, owned.back().tokens.size());
    }
  }
  std::sort(owned.begin(), owned.end(), [](const Owned& a, const Owned& b) { return a.tokens.begin < b.tokens.begin; });
  needs_.resize(static_cast<size_t>(sequence_ranks) * sequence_ranks);
  for (int reader = 0; reader < sequence_ranks; ++reader) {
    for (const Range& keys : needed_keys[reader].ranges()) {
      // No hull that starts more than the longest one earlier can reach these keys.
      auto it = std::lower_bound(owned.begin(), owned.end(), keys.begin - longest,
                                 [](const Owned& o, int64_t begin) { return o.tokens.begin < begin; });
      for (; it != owned.end() && it->tokens.begin < keys.end; ++it) {
        if (it->tokens.end <= keys.begin) continue;
        const size_t pair = static_cast<size_t>(reader) * sequence_ranks + it->owner;
        needs_[pair] = needs_[pair] || it->dense || !key_layout.RowsOf(it->owner, IntervalSet(keys)).empty();
      }
    }
  }
}

std::vector<Piece> InPlace(std::span<const Segment> shard, const IntervalSet& rows) {
  std::vector<Piece> pieces;
  for (const Range& range : rows.ranges()) {
    int64_t row = range.begin;
    for (const Segment& segment : SegmentsOfRows(shard, range)) {
      pieces.push_back({row, segment});
      row += segment.count;
    }
  }
  return pieces;
}

std::vector<Piece> Packed(std::span<const Segment> shard, const IntervalSet& rows, int64_t first_packed_row) {
  std::vector<Piece> pieces = InPlace(shard, rows);
  for (Piece& piece : pieces) {
    piece.row = first_packed_row;
    first_packed_row += piece.tokens.count;
  }
  return pieces;
}

void AppendTiles(const MaskIndex& index, std::span<const Piece> queries, std::span<const Piece> keys,
                 std::vector<Tile>& tiles) {
  for (const Piece& q : queries) {
    for (const Piece& k : keys) {
      if (index.AnyPair(q.tokens, k.tokens)) tiles.push_back({q.row, q.tokens, k.row, k.tokens});
    }
  }
}

}  // namespace tessera
