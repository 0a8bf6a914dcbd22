#pragma once

#include "kernels/cuda/device/launch.h"
#include "kernels/cuda/sm80/decode.cuh"

namespace tessera::cuda::sm80 {

template <typename Element, int kQk, int kV, bool kLatent>
int LaunchDecode(const DecodeParams& params, CUstream_st* stream) {
  constexpr int kSharedBytes = DecodeConfig<kQk, kV, kLatent>::kSharedBytes;
  // Above 48 KiB a kernel has to ask, on each device.
  const cudaError_t allowed = cudaFuncSetAttribute(DecodeKernel<Element, kQk, kV, kLatent>,
                                                   cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  if (allowed != cudaSuccess) return allowed;
  const dim3 grid(params.splits * params.tiles, params.score.kv_heads, params.sequence_count);
  DecodeKernel<Element, kQk, kV, kLatent><<<grid, kThreads, kSharedBytes, stream>>>(params);
  const cudaError_t launched = cudaGetLastError();
  return launched != cudaSuccess || params.splits == 1 ? launched : LaunchDecodeMerge(params, stream);
}

}  // namespace tessera::cuda::sm80
