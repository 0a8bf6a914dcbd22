#include "kernels/cuda/sm90/tensor_map.h"

namespace tessera::cuda::sm90 {
namespace {

constexpr int64_t kStrideUnit = 16;  // bytes; of addresses too
constexpr int64_t kStrideLimit = int64_t{1} << 40;
constexpr int64_t kExtentLimit = int64_t{1} << 32;

using EncodeTiled = decltype(&cuTensorMapEncodeTiled);

// The driver's function, found through the runtime, so that programs start where no driver is.
cudaError_t FindEncodeTiled(EncodeTiled* function) {
  constexpr unsigned kSince = 12000;  // the CUDA version whose signature this is
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, kSince, cudaEnableDefault, &result);
  if (error != cudaSuccess) return error;
  if (result != cudaDriverEntryPointSuccess) return cudaErrorSymbolNotFound;
  *function = reinterpret_cast<EncodeTiled>(found);
  return cudaSuccess;
}

// A stride that no box follows may be anything.
int64_t StrideBytes(int64_t stride, int64_t extent) {
  return extent == 1 ? kStrideUnit : stride * int64_t{sizeof(uint16_t)};
}

bool TakesStride(int64_t bytes) {
  return bytes > 0 && bytes % kStrideUnit == 0 && bytes < kStrideLimit;
}

}  // namespace

bool EngineTakes(const TensorRows& tensor) {
  return tensor.rows >= 1 && tensor.rows < kExtentLimit && tensor.heads >= 1 && tensor.width >= 1 &&
         reinterpret_cast<uintptr_t>(tensor.matrix.data) % kStrideUnit == 0 &&
         TakesStride(StrideBytes(tensor.matrix.row_stride, tensor.rows)) &&
         TakesStride(StrideBytes(tensor.matrix.head_stride, tensor.heads));
}

cudaError_t Encode(const TensorRows& tensor, int box_rows, CUtensorMap* map) {
  EncodeTiled encode = nullptr;
  const cudaError_t error = FindEncodeTiled(&encode);
  if (error != cudaSuccess) return error;
  const cuuint64_t extents[3] = {static_cast<cuuint64_t>(tensor.width), static_cast<cuuint64_t>(tensor.rows),
                                 static_cast<cuuint64_t>(tensor.heads)};
  const cuuint64_t strides[2] = {static_cast<cuuint64_t>(StrideBytes(tensor.matrix.row_stride, tensor.rows)),
                                 static_cast<cuuint64_t>(StrideBytes(tensor.matrix.head_stride, tensor.heads))};
  const cuuint32_t box[3] = {kPanelColumns, static_cast<cuuint32_t>(box_rows), 1};
  const cuuint32_t steps[3] = {1, 1, 1};
  // Both element types are moved as bits; the map does not interpret them.
  const CUresult result =
      encode(map, CU_TENSOR_MAP_DATA_TYPE_UINT16, 3, const_cast<uint16_t*>(tensor.matrix.data), extents, strides, box,
             steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace tessera::cuda::sm90
