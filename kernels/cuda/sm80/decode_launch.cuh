#pragma once

#include "kernels/cuda/device/launch.h"
#include "kernels/cuda/device/launch_kernel.cuh"
#include "kernels/cuda/sm80/decode.cuh"

namespace tessera::cuda::sm80 {

template <typename Element, int kQk, int kV, bool kLatent>
int LaunchDecode(const DecodeParams& params, CUstream_st* stream) {
  const dim3 grid(params.splits * params.tiles, params.score.kv_heads, params.sequence_count);
  const cudaError_t launched = LaunchKernel(DecodeKernel<Element, kQk, kV, kLatent>, grid, kThreads,
                                            DecodeConfig<kQk, kV, kLatent>::kSharedBytes, stream, params);
  return launched != cudaSuccess || params.splits == 1 ? launched : LaunchDecodeMerge(params, stream);
}

}  // namespace tessera::cuda::sm80
