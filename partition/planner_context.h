// What the planners of the sequence axis share. Internal to partition.
#pragma once

#include <span>
#include <vector>

#include "partition/needs.h"
#include "partition/plan.h"
#include "partition/program_builder.h"

namespace tessera {

// Everything about a spec that does not depend on the rank; built once for all programs.
// "Sequence rank" s is a position on the sequence axis: with head_ranks > 1 the ranks of a head group act as one
// sequence rank whose shard is the union of theirs.
struct PlannerContext {
  explicit PlannerContext(const PlanSpec& plan_spec);

  const PlanSpec& spec;
  MaskIndex index;
  int sequence_ranks;
  Layout query_layout;  // over sequence ranks
  Layout key_layout;
  std::vector<IntervalSet> needed_keys;  // per sequence rank: tokens attended by some query of it

  // Whether sequence rank `reader` attends any key of sequence rank `owner`.
  bool Needs(int reader, int owner) const { return needs_[reader * static_cast<size_t>(sequence_ranks) + owner]; }
  // Rows of sequence rank `owner`'s key shard that sequence rank `reader` attends.
  IntervalSet NeededRows(int reader, int owner) const {
    return Needs(reader, owner) ? key_layout.RowsOf(owner, needed_keys[reader]) : IntervalSet();
  }

 private:
  void FindNeeds();
  std::vector<bool> needs_;  // reader x owner; thousands of ranks ask for every pair
};

// Consecutive rows of a slot that hold a segment of tokens.
struct Piece {
  int64_t row = 0;
  Segment tokens;
};
// Pieces of rows `rows` of a shard; stored in place, or packed one after the other from row `first_packed_row`.
std::vector<Piece> InPlace(std::span<const Segment> shard, const IntervalSet& rows);
std::vector<Piece> Packed(std::span<const Segment> shard, const IntervalSet& rows, int64_t first_packed_row = 0);

// Appends a tile for every pair of pieces that the mask does not separate.
void AppendTiles(const MaskIndex& index, std::span<const Piece> queries, std::span<const Piece> keys,
                 std::vector<Tile>& tiles);
}  // namespace tessera
