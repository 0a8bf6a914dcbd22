// Working arrays of the backward pass on a tile unit.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tessera::cpu {

// Offsets, in floats, of a task's working arrays in a thread's arena. A unit is kUnitRows (row, head) pairs; what is
// summed over them is summed over the units of a pass at a time, so that loading and storing sums is small beside their
// products. A pair of halves lies in a dword: neighbours along the width, or the same column of rows (keys) i and
// i + 16 of 32.
struct TileBackwardLayout {
  static constexpr int kUnitRows = 32;
  static constexpr int kPassUnits = 4;

  TileBackwardLayout(int64_t units, int qk_width, int v_width);

  int qk_depth;  // pairs along the widths, rounded up to whole tiles
  int v_depth;
  int qk_stride;  // widths rounded up to whole tiles
  int v_stride;
  size_t query_columns;            // [units][qk_depth][kUnitRows] pairs along the width
  size_t output_gradient_columns;  // [units][v_depth][kUnitRows]
  size_t query_pairs;              // [units][kUnitRows / 2][qk_stride] pairs of rows
  size_t output_gradient_pairs;    // [units][kUnitRows / 2][v_stride]
  size_t query_gradient;           // [units][qk_stride][kUnitRows], transposed
  size_t lse;                      // [units][kUnitRows]
  size_t delta;                    // [units][kUnitRows]
  size_t poison;                   // [units][2] 32 bits: rows of query and output gradient that are not finite
  size_t key;                      // [kKeyBlock][qk_depth] pairs along the width
  size_t value;                    // [kKeyBlock][v_depth]
  size_t key_columns;              // [2][qk_stride][kKeyBlock / 2] pairs of keys
  size_t key_gradient;             // [2][kKeyBlock][qk_stride]
  size_t value_gradient;           // [2][kKeyBlock][v_stride]
  size_t score;                    // [2] of [kKeyBlock][kUnitRows] scores, then the same of dP
  size_t weight;                   // [2][kPassUnits] of [kKeyBlock][kUnitRows / 2] pairs of rows of P, then of dS
  size_t weight_pairs;             // [2][kKeyBlock / 2][kUnitRows] pairs of keys of dS
  size_t rows;                     // [2 kUnitRows + 1][kKeyBlock], of one unit row by row
  size_t staging;                  // [kUnitRows][qk_stride] on their way to be transposed
  size_t total;
};

// TileBackwardLayout::total for that many pairs.
size_t TileBackwardFloats(int64_t pairs, int qk_width, int v_width);

}  // namespace tessera::cpu
