// Launching kernels that may take more shared memory than a kernel gets unasked.
#pragma once

namespace tessera::cuda {

// Asynchronous on `stream`.
template <typename... Params>
cudaError_t LaunchKernel(void (*kernel)(Params...), dim3 grid, int threads, int shared_bytes, CUstream_st* stream,
                         const Params&... params) {
  // Above 48 KiB a kernel has to ask, on each device.
  const cudaError_t allowed = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  if (allowed != cudaSuccess) return allowed;
  kernel<<<grid, threads, shared_bytes, stream>>>(params...);
  return cudaGetLastError();
}

}  // namespace tessera::cuda
