// Describes tensors to Hopper's copy engine.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/device/attend_params.h"

namespace tessera::cuda::sm90 {

// Columns of a box: 128 bytes, as wide as the swizzle that products read.
inline constexpr int kPanelColumns = 64;

// [rows, heads, width] of 16-bit elements in device memory, strides in elements.
struct TensorRows {
  Matrix<const uint16_t> matrix;
  int64_t rows;
  int heads;
  int width;
};

// A paged cache, [pages, page_tokens, heads, width] of 16-bit elements in device memory, strides in bytes.
struct TensorPages {
  const std::byte* data;
  int page_tokens;
  int heads;
  int width;
  int64_t page_stride;
  int64_t row_stride;
  int64_t head_stride;
};

// Whether the copy engine can load it: it starts at a multiple of 16 bytes, and so do its rows, heads and pages.
bool EngineTakes(const TensorRows& tensor);
bool EngineTakes(const TensorPages& cache);

// Boxes of kPanelColumns columns and `box_rows` rows of one head; coordinates are column, row, head. What lies outside
// becomes zeros. The tensor is one that the engine takes.
cudaError_t Encode(const TensorRows& tensor, int box_rows, CUtensorMap* map);
// The same; coordinates are column, row of the page, head, page.
cudaError_t Encode(const TensorPages& cache, int box_rows, CUtensorMap* map);

}  // namespace tessera::cuda::sm90
