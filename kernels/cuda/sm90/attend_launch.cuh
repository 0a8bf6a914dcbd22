#pragma once

#include "kernels/cuda/device/launch.h"
#include "kernels/cuda/device/launch_kernel.cuh"
#include "kernels/cuda/sm90/attend.cuh"
#include "kernels/cuda/sm90/tensor_map.h"

namespace tessera::cuda::sm90 {

template <typename Element, int kQk, int kV, bool kEngine>
cudaError_t LaunchAttend(const AttendParams& params, const AttendMaps& maps, CUstream_st* stream) {
  using Config = AttendConfig<kQk, kV>;
  const dim3 grid(params.work.block_count, params.score.heads);
  return LaunchKernel(AttendKernelSm90<Element, kQk, kV, kEngine>, grid, Config::kThreads, Config::kSharedBytes, stream,
                      params, maps);
}

template <typename Element, int kQk, int kV>
int LaunchAttend(const AttendParams& params, CUstream_st* stream) {
  using Config = AttendConfig<kQk, kV>;
  const ScoreParams& score = params.score;
  const TensorRows query{params.query, params.query_rows, score.heads, score.qk_width};
  const TensorRows key{params.key, params.key_rows, score.kv_heads, score.qk_width};
  const TensorRows value{params.value, params.key_rows, score.kv_heads, score.v_width};
  AttendMaps maps = {};
  if (!EngineTakes(query) || !EngineTakes(key) || !EngineTakes(value)) {
    return LaunchAttend<Element, kQk, kV, false>(params, maps, stream);
  }
  cudaError_t error = Encode(query, Config::kRows / 2, &maps.query);
  if (error == cudaSuccess) error = Encode(key, Config::kKeys, &maps.key);
  if (error == cudaSuccess) error = Encode(value, Config::kKeys, &maps.value);
  return error != cudaSuccess ? error : LaunchAttend<Element, kQk, kV, true>(params, maps, stream);
}

}  // namespace tessera::cuda::sm90
