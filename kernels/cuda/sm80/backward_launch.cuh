#pragma once

#include "kernels/cuda/device/launch.h"
#include "kernels/cuda/sm80/backward.cuh"

namespace tessera::cuda::sm80 {

template <typename Element, int kQk, int kV, Gradient kGradient>
cudaError_t LaunchGradient(const BackwardParams& params, CUstream_st* stream) {
  constexpr int kSharedBytes = BackwardConfig<kQk, kV>::kSharedBytes;
  constexpr bool kQueries = kOwnsQueries<kGradient>;
  const dim3 grid(kQueries ? params.by_queries.block_count : params.by_keys.block_count,
                  kQueries ? params.score.heads : params.score.kv_heads);
  if (grid.x == 0) return cudaSuccess;
  // Above 48 KiB a kernel has to ask, on each device.
  const cudaError_t allowed = cudaFuncSetAttribute(BackwardKernel<Element, kQk, kV, kGradient>,
                                                   cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  if (allowed != cudaSuccess) return allowed;
  BackwardKernel<Element, kQk, kV, kGradient><<<grid, kThreads, kSharedBytes, stream>>>(params);
  return cudaGetLastError();
}

template <typename Element, int kQk, int kV>
int LaunchBackward(const BackwardParams& params, CUstream_st* stream) {
  cudaError_t error = LaunchGradient<Element, kQk, kV, Gradient::kQuery>(params, stream);
  if (error != cudaSuccess) return error;
  if constexpr (BackwardConfig<kQk, kV>::kKeyAndValueTogether) {
    error = LaunchGradient<Element, kQk, kV, Gradient::kKeyAndValue>(params, stream);
  } else {
    error = LaunchGradient<Element, kQk, kV, Gradient::kKey>(params, stream);
    if (error == cudaSuccess) error = LaunchGradient<Element, kQk, kV, Gradient::kValue>(params, stream);
  }
  return error;
}

}  // namespace tessera::cuda::sm80
