// The backward pass over one piece of the problem, and the driver that runs all pieces.
#pragma once

#include <cstddef>
#include <string_view>

#include "kernels/attention_backward.h"
#include "kernels/cpu/blocks.h"

namespace tessera::cpu {

// Register tiles whose P and dS are kept until their products with the keys' side are taken: 96 rows deep, so that
// loading, adding and storing a product's accumulators is small beside its 96 multiply-adds each.
inline constexpr int kTilesPerPass = 16;

// Offsets, in floats, of a task's working arrays in a thread's arena. `blocks` counts register tiles of kRowBlock
// (row, head) pairs, numbered head by head.
struct BackwardLayout {
  BackwardLayout(int64_t blocks, int qk_width, int v_width);

  int qk_stride;  // widths rounded up to whole vectors
  int v_stride;
  size_t query;             // [pairs][qk_stride]
  size_t output_gradient;   // [pairs][v_stride]
  size_t query_gradient;    // [pairs][qk_stride]
  size_t lse;               // [pairs]
  size_t delta;             // [pairs]
  size_t key;               // [kKeyBlock][qk_stride]
  size_t key_transposed;    // [qk_width][kKeyBlock]
  size_t value_transposed;  // [v_width][kKeyBlock]
  size_t key_gradient;      // [kKeyBlock][qk_stride]
  size_t value_gradient;    // [kKeyBlock][v_stride]
  size_t probability;       // [kTilesPerPass * kRowBlock][kKeyBlock]
  size_t score_gradient;    // [kTilesPerPass * kRowBlock][kKeyBlock]
  size_t cap_slope;         // [kKeyBlock], derivative of the soft cap along one row
  size_t staging;           // [4][wider stride] rows on their way to be transposed
  size_t total;
};

// Query rows and key rows of `rows`, query heads `heads` of the call, all reading key head `kv_head` of the views.
struct BackwardTask {
  Tile rows;
  HeadRange heads;
  int kv_head = 0;
};

// Runs `task` with an arena of BackwardCode::arena_floats, aligned to 64 bytes.
using AttendBackwardTask = void (*)(const AttendBackwardArgs& args, const BackwardTask& task, RowMask& mask,
                                    float* arena);

// Floats of BackwardLayout for that many (row, head) pairs.
size_t BackwardFloats(int64_t pairs, int qk_width, int v_width);

// The backward pass of one instruction set.
struct BackwardCode {
  AttendBackwardTask run = nullptr;  // null when it is not compiled in
  int tile_rows = kRowBlock;         // pairs that are computed together
  // Floats of a task's arena, for at most that many pairs.
  size_t (*arena_floats)(int64_t pairs, int qk_width, int v_width) = BackwardFloats;
};

// Runs `args`, already checked, piece by piece. ResourceExhausted, with `name`, when a thread gets no arena.
Status RunBackward(const AttendBackwardArgs& args, const BackwardCode& code, std::string_view name);

}  // namespace tessera::cpu
