#pragma once

#include "kernels/cuda/device/gradient_launch.cuh"
#include "kernels/cuda/device/launch.h"
#include "kernels/cuda/device/launch_kernel.cuh"
#include "kernels/cuda/sm90/backward.cuh"
#include "kernels/cuda/sm90/tensor_map.h"

namespace tessera::cuda::sm90 {

template <typename Element, int kQk, int kV, Gradient kGradient, bool kEngine>
cudaError_t LaunchGradient(const BackwardParams& params, const BackwardMaps& maps, CUstream_st* stream) {
  using Config = BackwardConfig<kQk, kV>;
  const dim3 grid = GradientGrid<kGradient>(params);
  if (grid.x == 0) return cudaSuccess;
  return LaunchKernel(BackwardKernelSm90<Element, kQk, kV, kGradient, kEngine>, grid, Config::kThreads,
                      Config::kSharedBytes, stream, params, maps);
}

template <typename Element, int kQk, int kV, Gradient kGradient>
cudaError_t LaunchGradient(const BackwardParams& params, CUstream_st* stream) {
  using Config = BackwardConfig<kQk, kV>;
  const ScoreParams& score = params.score;
  const TensorRows query{params.query, params.query_rows, score.heads, score.qk_width};
  const TensorRows output_gradient{params.output_gradient, params.query_rows, score.heads, score.v_width};
  const TensorRows key{params.key, params.key_rows, score.kv_heads, score.qk_width};
  const TensorRows value{params.value, params.key_rows, score.kv_heads, score.v_width};
  BackwardMaps maps = {};
  if (!EngineTakes(query) || !EngineTakes(output_gradient) || !EngineTakes(key) || !EngineTakes(value)) {
    return LaunchGradient<Element, kQk, kV, kGradient, false>(params, maps, stream);
  }
  constexpr bool kQueries = kOwnsQueries<kGradient>;
  constexpr int kWarpgroups = 2;
  cudaError_t error = Encode(kQueries ? query : key, Config::kOwnRows / kWarpgroups, &maps.own1);
  const auto encode = [&error](const TensorRows& tensor, int rows, CUtensorMap* map) {
    if (error == cudaSuccess) error = Encode(tensor, rows, map);
  };
  encode(kQueries ? output_gradient : value, Config::kOwnRows / kWarpgroups, &maps.own2);
  encode(kQueries ? key : query, Config::kOtherRows, &maps.other1);
  encode(kQueries ? value : output_gradient, Config::kOtherRows, &maps.other2);
  return error != cudaSuccess ? error : LaunchGradient<Element, kQk, kV, kGradient, true>(params, maps, stream);
}

template <typename Element, int kQk, int kV>
int LaunchBackward(const BackwardParams& params, CUstream_st* stream) {
  return LaunchGradients<BackwardConfig<kQk, kV>::kKeyAndValueTogether>(
      [&]<Gradient kGradient>() { return LaunchGradient<Element, kQk, kV, kGradient>(params, stream); });
}

}  // namespace tessera::cuda::sm90
