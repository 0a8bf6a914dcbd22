// Row operations of latent attention and of paged caches, as launched. Every function is asynchronous on `stream`,
// returns a cudaError_t and does nothing when there are no rows. Pointers are device memory.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/device/steps.h"

namespace tessera::cuda {

// out = in * gamma / sqrt(mean(in^2) + epsilon), per row and head. gamma [width] fp32, or null for ones.
struct NormParams {
  Matrix<const void> in;
  ElementType in_type;
  Matrix<void> out;
  ElementType out_type;
  const float* gamma;
  float epsilon;
  RowShape shape;
};
int LaunchRmsNorm(const NormParams& params, CUstream_st* stream);

// out = scale * in, per row and head, rounded to the type of out.
struct ScaleParams {
  Matrix<const void> in;
  ElementType in_type;
  Matrix<void> out;
  ElementType out_type;
  float scale;
  RowShape shape;
};
int LaunchScale(const ScaleParams& params, CUstream_st* stream);

// Rotates pairs of columns in place: (i, i + width / 2), or (2 i, 2 i + 1) when interleaved.
struct RopeParams {
  Matrix<void> rows;
  ElementType type;
  const int64_t* positions;  // [rows]
  const float* table;        // [positions, width / 2, 2]: cosine and sine
  bool interleaved;
  RowShape shape;  // width: of the rotated columns, even
};
int LaunchRope(const RopeParams& params, CUstream_st* stream);

// out = H (signs * in) / sqrt(width) with the Sylvester matrix H, per row and head. signs [width] fp32, or null for
// ones.
struct HadamardParams {
  Matrix<const void> in;
  ElementType in_type;
  Matrix<void> out;
  ElementType out_type;
  const float* signs;
  RowShape shape;  // width: a power of two
};
int LaunchHadamard(const HadamardParams& params, CUstream_st* stream);

// Where a row of a sequence lies in a paged pool.
struct CacheSlot {
  int32_t page;  // negative: nowhere, the row is skipped
  int32_t row;   // of the page
};

// Copies dense rows into a paged pool, or out of it.
struct CacheCopyParams {
  std::byte* pool;
  int64_t page_stride, row_stride, head_stride;  // bytes
  std::byte* dense;
  int64_t dense_row_stride, dense_head_stride;  // bytes
  const CacheSlot* slots;                       // [rows]
  int64_t rows;
  int32_t heads;
  int32_t row_bytes;  // of one head
  bool into_pool;
};
int LaunchCacheCopy(const CacheCopyParams& params, CUstream_st* stream);

}  // namespace tessera::cuda
