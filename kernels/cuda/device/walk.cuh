// Walks the runs of a row block piece by piece, and decides masks within a piece.
#pragma once

#include <cstdint>

#include "kernels/cuda/device/attend_params.h"

namespace tessera::cuda {

// Up to kRows consecutive rows of one run. The run is read again where it is needed, from the first-level cache,
// instead of kept in registers.
template <int kRows>
struct Piece {
  int run;
  int offset;

  __device__ __forceinline__ int first_row(const Run* runs) const { return runs[run].first_row + offset; }
  __device__ __forceinline__ int rows(const Run* runs) const { return min(runs[run].rows - offset, kRows); }
  __device__ __forceinline__ bool masked(const Run* runs) const { return runs[run].bands > 0; }
  // False at the end of the block's runs.
  __device__ __forceinline__ bool Next(const Run* runs, int end_run) {
    offset += kRows;
    if (offset >= runs[run].rows) {
      ++run;
      offset = 0;
    }
    return run < end_run;
  }
};

// Which of kColumns columns of a piece one row of the block meets. Bit i stands for row column(i) of the piece, where
// the columns of a lane are those of an m16n8 accumulator: 8 (i / 2) + 2 (lane % 4) + i % 2.
template <int kColumns>
__device__ __forceinline__ uint32_t MetColumns(const DeviceWork& work, const Run& run, int offset, int rows,
                                               int block_row, int first_column) {
  static_assert(kColumns <= 32);
  const int32_t token = run.block_token + block_row * run.block_stride;
  const int32_t first = run.first_token + offset * run.stride;
  uint32_t met = 0;
  for (int b = 0; b < run.bands; ++b) {
    const DeviceBand band = work.bands[work.band_numbers[run.first_band + b]];
    if (token < band.block_begin || token >= band.block_end) continue;
    // Relative to the first token of the piece; the sums stay below 2^31 since both terms are within +-2^30.
    const int32_t low = max(band.begin - first, token + band.min_offset - first);
    const int32_t high = min(band.end - 1 - first, token + band.max_offset - first);
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      const int column = first_column + i / 2 * 8 + i % 2;
      const int32_t relative = column * run.stride;
      if (relative >= low && relative <= high && column < rows) met |= 1u << i;
    }
  }
  return met;
}

// Whether one row of the block meets one row of a masked run.
__device__ __forceinline__ bool Meets(const DeviceWork& work, const Run& run, int block_row, int row) {
  const int32_t token = run.block_token + block_row * run.block_stride;
  const int32_t other = run.first_token + row * run.stride;
  for (int b = 0; b < run.bands; ++b) {
    const DeviceBand band = work.bands[work.band_numbers[run.first_band + b]];
    if (token >= band.block_begin && token < band.block_end && other >= band.begin && other < band.end &&
        other - token >= band.min_offset && other - token <= band.max_offset) {
      return true;
    }
  }
  return false;
}

// Columns that exist, for rows that meet all of them.
template <int kColumns>
__device__ __forceinline__ uint32_t PresentColumns(int rows, int first_column) {
  uint32_t met = 0;
#pragma unroll
  for (int i = 0; i < kColumns; ++i) {
    if (first_column + i / 2 * 8 + i % 2 < rows) met |= 1u << i;
  }
  return met;
}

}  // namespace tessera::cuda
