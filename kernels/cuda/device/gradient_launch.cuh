// The kernels that a backward pass consists of, for any family of tensor cores.
#pragma once

#include "kernels/cuda/device/gradient_rows.cuh"

namespace tessera::cuda {

// A thread block per row block and head of the side whose gradients it accumulates.
template <Gradient kGradient>
dim3 GradientGrid(const BackwardParams& params) {
  if constexpr (kOwnsQueries<kGradient>) return dim3(params.by_queries.block_count, params.score.heads);
  return dim3(params.by_keys.block_count, params.score.kv_heads);
}

// Calls `launch`, a lambda whose template parameter is the Gradient, for one after the other until the first error.
template <bool kKeyAndValueTogether, typename Launch>
cudaError_t LaunchGradients(Launch launch) {
  cudaError_t error = launch.template operator()<Gradient::kQuery>();
  if (error != cudaSuccess) return error;
  if constexpr (kKeyAndValueTogether) {
    error = launch.template operator()<Gradient::kKeyAndValue>();
  } else {
    error = launch.template operator()<Gradient::kKey>();
    if (error == cudaSuccess) error = launch.template operator()<Gradient::kValue>();
  }
  return error;
}

}  // namespace tessera::cuda
