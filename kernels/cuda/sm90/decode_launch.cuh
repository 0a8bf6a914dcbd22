#pragma once

#include "kernels/cuda/device/launch.h"
#include "kernels/cuda/device/launch_kernel.cuh"
#include "kernels/cuda/sm90/decode.cuh"
#include "kernels/cuda/sm90/tensor_map.h"

namespace tessera::cuda::sm90 {

template <typename Element, int kQk, int kV, bool kLatent, bool kEngine>
cudaError_t LaunchSplits(const DecodeParams& params, const DecodeMaps& maps, CUstream_st* stream) {
  using Config = DecodeConfig<kQk, kV, kLatent>;
  const dim3 grid(params.splits * params.tiles, params.score.kv_heads, params.sequence_count);
  return LaunchKernel(DecodeKernelSm90<Element, kQk, kV, kLatent, kEngine>, grid, Config::kThreads,
                      Config::kSharedBytes, stream, params, maps);
}

template <typename Element, int kQk, int kV, bool kLatent>
int LaunchDecode(const DecodeParams& params, CUstream_st* stream) {
  const TensorPages key{params.key,         params.page_tokens,    params.score.kv_heads, params.score.qk_width,
                        params.page_stride, params.key_row_stride, params.key_head_stride};
  const TensorPages value{params.value,       params.page_tokens,      params.score.kv_heads,   params.score.v_width,
                          params.page_stride, params.value_row_stride, params.value_head_stride};
  DecodeMaps maps = {};
  // As many rows as a block of keys or a page consists of, and no fewer than the swizzle mixes.
  maps.box_rows = DecodeConfig<kQk, kV, kLatent>::kKeys;
  while (params.page_tokens % maps.box_rows != 0) maps.box_rows /= 2;
  cudaError_t error = cudaSuccess;
  if (maps.box_rows < 8 || !EngineTakes(key) || (!kLatent && !EngineTakes(value))) {
    error = LaunchSplits<Element, kQk, kV, kLatent, false>(params, maps, stream);
  } else {
    error = Encode(key, maps.box_rows, &maps.key);
    if (error == cudaSuccess && !kLatent) error = Encode(value, maps.box_rows, &maps.value);
    if (error == cudaSuccess) error = LaunchSplits<Element, kQk, kV, kLatent, true>(params, maps, stream);
  }
  return error != cudaSuccess || params.splits == 1 ? error : LaunchDecodeMerge(params, stream);
}

}  // namespace tessera::cuda::sm90
