// What a planned kernel call reads on the device: which rows of one side (a block, owned by one thread block) meet
// which rows of the other side (runs). Plain data shared by the planner and the kernels.
//
// A block is some query rows and its runs are key rows, or the other way round for gradients of keys. Tokens and
// offsets are 32-bit and lie within +-kTokenLimit, so that differences of two never overflow.
#pragma once

#include <cstdint>

namespace tessera::cuda {

inline constexpr int32_t kTokenLimit = 1 << 30;

// Rows [first_row, first_row + rows) of one tensor and the runs [first_run, first_run + runs) they meet.
struct RowBlock {
  int32_t first_row;
  int32_t rows;
  int32_t first_run;
  int32_t runs;
};

// Rows [first_row, first_row + rows) of the other tensor. Row i has token first_token + i * stride; row i of the block
// has token block_token + i * block_stride here.
struct Run {
  int32_t first_row;
  int32_t rows;
  int32_t first_token;
  int32_t stride;
  int32_t block_token;
  int32_t block_stride;
  int32_t first_band;  // into the list of band numbers
  int32_t bands;       // 0: every pair meets; otherwise a pair meets when one of these bands allows it
};

// Band (runtime/base/geometry.h) as seen from the block's side: token t of the block meets token u when both lie in
// their ranges and min_offset <= u - t <= max_offset.
struct DeviceBand {
  int32_t block_begin, block_end;
  int32_t begin, end;
  int32_t min_offset, max_offset;
};

}  // namespace tessera::cuda
