#pragma once

#include "kernels/cuda/device/gradient_launch.cuh"
#include "kernels/cuda/device/launch.h"
#include "kernels/cuda/device/launch_kernel.cuh"
#include "kernels/cuda/sm80/backward.cuh"

namespace tessera::cuda::sm80 {

template <typename Element, int kQk, int kV, Gradient kGradient>
cudaError_t LaunchGradient(const BackwardParams& params, CUstream_st* stream) {
  const dim3 grid = GradientGrid<kGradient>(params);
  if (grid.x == 0) return cudaSuccess;
  return LaunchKernel(BackwardKernel<Element, kQk, kV, kGradient>, grid, kThreads,
                      BackwardConfig<kQk, kV>::kSharedBytes, stream, params);
}

template <typename Element, int kQk, int kV>
int LaunchBackward(const BackwardParams& params, CUstream_st* stream) {
  return LaunchGradients<BackwardConfig<kQk, kV>::kKeyAndValueTogether>(
      [&]<Gradient kGradient>() { return LaunchGradient<Element, kQk, kV, kGradient>(params, stream); });
}

}  // namespace tessera::cuda::sm80
