#include <array>
#include <limits>
#include <span>

#include "kernels/cuda/sm90/tensor_map.h"

namespace tessera::cuda::sm90 {
namespace {

constexpr int64_t kStrideUnit = 16;  // bytes; of addresses too
constexpr int64_t kStrideLimit = int64_t{1} << 40;
constexpr int64_t kElementBytes = sizeof(uint16_t);
constexpr int64_t kExtentLimit = int64_t{1} << 32;

using EncodeTiled = decltype(&cuTensorMapEncodeTiled);

// The driver's function, found through the runtime, so that programs start where no driver is.
struct Encoder {
  cudaError_t error = cudaSuccess;
  EncodeTiled encode = nullptr;
};

Encoder FindEncoder() {
  constexpr unsigned kSince = 12000;  // the CUDA version whose signature this is
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
  Encoder encoder;
  encoder.error =
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, kSince, cudaEnableDefault, &result);
  if (encoder.error == cudaSuccess && result != cudaDriverEntryPointSuccess) encoder.error = cudaErrorSymbolNotFound;
  encoder.encode = reinterpret_cast<EncodeTiled>(found);
  return encoder;
}

struct Dimension {
  int64_t extent;
  int64_t stride_bytes;
  int box;
};

// Strides of dimensions with one element may be anything.
Dimension DimensionOf(int64_t extent, int64_t stride_bytes, int box) {
  return {extent, extent == 1 ? kStrideUnit : stride_bytes, box};
}

bool Takes(const void* data, int width, std::span<const Dimension> dimensions) {
  bool takes = width >= 1 && reinterpret_cast<uintptr_t>(data) % kStrideUnit == 0;
  for (const Dimension& d : dimensions) {
    takes &= d.extent >= 1 && d.extent < kExtentLimit;
    takes &= d.stride_bytes > 0 && d.stride_bytes % kStrideUnit == 0 && d.stride_bytes < kStrideLimit;
  }
  return takes;
}

// Dimensions besides the columns, which are contiguous.
cudaError_t EncodeDimensions(const void* data, int width, std::span<const Dimension> dimensions, CUtensorMap* map) {
  static const Encoder encoder = FindEncoder();
  if (encoder.error != cudaSuccess) return encoder.error;
  constexpr int kMostDimensions = 5;
  cuuint64_t extents[kMostDimensions] = {static_cast<cuuint64_t>(width)}, strides[kMostDimensions] = {};
  cuuint32_t box[kMostDimensions] = {kPanelColumns}, steps[kMostDimensions] = {1, 1, 1, 1, 1};
  cuuint32_t rank = 1;
  for (const Dimension& d : dimensions) {
    strides[rank - 1] = static_cast<cuuint64_t>(d.stride_bytes);
    extents[rank] = static_cast<cuuint64_t>(d.extent);
    box[rank++] = static_cast<cuuint32_t>(d.box);
  }
  // Both element types are moved as bits; the map does not interpret them.
  const CUresult result = encoder.encode(map, CU_TENSOR_MAP_DATA_TYPE_UINT16, rank, const_cast<void*>(data), extents,
                                         strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                         CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

std::array<Dimension, 2> DimensionsOf(const TensorRows& tensor, int box_rows) {
  return {DimensionOf(tensor.rows, tensor.matrix.row_stride * kElementBytes, box_rows),
          DimensionOf(tensor.heads, tensor.matrix.head_stride * kElementBytes, 1)};
}

// How many pages there are is not known here; page numbers are 32-bit.
std::array<Dimension, 3> DimensionsOf(const TensorPages& cache, int box_rows) {
  return {DimensionOf(cache.page_tokens, cache.row_stride, box_rows), DimensionOf(cache.heads, cache.head_stride, 1),
          DimensionOf(std::numeric_limits<int32_t>::max(), cache.page_stride, 1)};
}

}  // namespace

bool EngineTakes(const TensorRows& tensor) {
  return Takes(tensor.matrix.data, tensor.width, DimensionsOf(tensor, 1));
}
bool EngineTakes(const TensorPages& cache) {
  return Takes(cache.data, cache.width, DimensionsOf(cache, 1));
}

cudaError_t Encode(const TensorRows& tensor, int box_rows, CUtensorMap* map) {
  return EncodeDimensions(tensor.matrix.data, tensor.width, DimensionsOf(tensor, box_rows), map);
}
cudaError_t Encode(const TensorPages& cache, int box_rows, CUtensorMap* map) {
  return EncodeDimensions(cache.data, cache.width, DimensionsOf(cache, box_rows), map);
}

}  // namespace tessera::cuda::sm90
