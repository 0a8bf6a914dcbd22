// Grids for kernels whose threads or warps each take one item.
#pragma once

#include <cstdint>

namespace tessera::cuda {

inline constexpr int kStepThreads = 256;

// The item of this thread or warp; items beyond the last have to be skipped.
__device__ __forceinline__ int64_t ThreadItem() {
  return int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
}
__device__ __forceinline__ int64_t WarpItem() {
  return ThreadItem() / 32;
}
__device__ __forceinline__ int Lane() {
  return static_cast<int>(threadIdx.x % 32);
}

inline unsigned BlocksOfThreads(int64_t items) {
  return static_cast<unsigned>((items + kStepThreads - 1) / kStepThreads);
}
inline unsigned BlocksOfWarps(int64_t items) {
  return BlocksOfThreads(items * 32);
}

// Sums over the lanes of a warp, in one fixed order; every lane gets the result.
template <typename Real>
__device__ __forceinline__ Real WarpSum(Real value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(~0u, value, distance);
  return value;
}

}  // namespace tessera::cuda
