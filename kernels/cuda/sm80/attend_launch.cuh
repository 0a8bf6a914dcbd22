#pragma once

#include "kernels/cuda/device/launch.h"
#include "kernels/cuda/device/launch_kernel.cuh"
#include "kernels/cuda/sm80/attend.cuh"

namespace tessera::cuda::sm80 {

template <typename Element, int kQk, int kV>
int LaunchAttend(const AttendParams& params, CUstream_st* stream) {
  const dim3 grid(params.work.block_count, params.score.heads);
  return LaunchKernel(AttendKernel<Element, kQk, kV>, grid, kThreads, AttendConfig<kQk, kV>::kSharedBytes, stream,
                      params);
}

}  // namespace tessera::cuda::sm80
