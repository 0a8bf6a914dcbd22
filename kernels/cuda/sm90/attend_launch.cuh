#pragma once

#include "kernels/cuda/device/launch.h"
#include "kernels/cuda/sm90/attend.cuh"

namespace tessera::cuda::sm90 {

template <typename Element, int kQk, int kV>
int LaunchAttend(const AttendParams& params, CUstream_st* stream) {
  constexpr int kSharedBytes = AttendConfig<kQk, kV>::kSharedBytes;
  // Above 48 KiB a kernel has to ask, on each device.
  const cudaError_t allowed = cudaFuncSetAttribute(AttendKernelSm90<Element, kQk, kV>,
                                                   cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  if (allowed != cudaSuccess) return allowed;
  const dim3 grid(params.work.block_count, params.score.heads);
  AttendKernelSm90<Element, kQk, kV><<<grid, AttendConfig<kQk, kV>::kThreads, kSharedBytes, stream>>>(params);
  return cudaGetLastError();
}

}  // namespace tessera::cuda::sm90
