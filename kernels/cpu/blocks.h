// Which key blocks meet which query rows: tiles are grouped so that no two tasks share a query row, and masks become
// sorted key ranges per row. Independent of the instruction set.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "runtime/base/geometry.h"

namespace tessera::cpu {

// Rows of one register tile, and keys of one packed block (one bit each in a mask word).
inline constexpr int kRowBlock = 6;
inline constexpr int kKeyBlock = 64;

// The key side of a tile.
struct KeyRows {
  int64_t first_row = 0;
  Segment keys;
};

// Query rows and every key segment they meet.
struct QueryGroup {
  int64_t first_row = 0;
  Segment queries;
  std::vector<KeyRows> keys;
};

// Tiles of equal query rows become one group. The groups of one wave share no query row and may run concurrently;
// waves run one after the other. The order depends on the tiles alone.
std::vector<std::vector<QueryGroup>> Waves(std::span<const Tile> tiles);

// Key rows outside of which no query of `queries` attends a key of `keys` by `band`.
Range KeyRowsMet(const Band& band, const Segment& queries, const Segment& keys);

// What the bands allow between some query rows and one key segment. Reused between tasks to keep its memory.
class RowMask {
 public:
  void Reset(std::span<const Band> bands, const Segment& queries, const Segment& keys);

  // No key row outside Outer(row) is allowed, every key row inside Inner(row) is. Both may be empty.
  Range Outer(int64_t row) const { return outer_[row]; }
  Range Inner(int64_t row) const { return inner_[row]; }
  // Bit i says whether `row` attends key row `first_key` + i, for kKeyBlock keys.
  uint64_t Bits(int64_t row, int64_t first_key) const;
  // Bits(), quick for a block that is wholly allowed or wholly hidden.
  uint64_t BlockBits(int64_t row, int64_t first_key) const {
    const Range block{first_key, first_key + kKeyBlock}, inner = Inner(row);
    if (inner.begin <= block.begin && block.end <= inner.end) return ~uint64_t{0};
    return Intersect(Outer(row), block).empty() ? 0 : Bits(row, first_key);
  }
  // Ranges of key block numbers (key row / kKeyBlock) outside of which no row attends anything; ascending, disjoint.
  std::span<const Range> key_blocks() const { return key_blocks_; }

 private:
  std::vector<Band> bands_;    // those that meet the query rows
  std::vector<Range> ranges_;  // key ranges of all rows; ascending and not adjacent within a row
  std::vector<size_t> first_;  // [rows + 1] into ranges_
  std::vector<Range> outer_;
  std::vector<Range> inner_;
  std::vector<Range> key_blocks_;
};

}  // namespace tessera::cpu
