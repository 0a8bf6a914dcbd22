// Kernels for the tests of the stand-in, launched as nvcc launches them.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

namespace tessera::vgpu {

constexpr int kTableEntries = 8;

// values[i] = values[i] * factor + 1 for i < count. Device memory, [count] fp32.
cudaError_t Scale(float* values, int count, float factor, cudaStream_t stream);
// One thread writes to values[index], which may be anywhere.
cudaError_t WriteAt(float* values, long long index, cudaStream_t stream);
// One thread writes a float one byte behind `values`.
cudaError_t WriteMisaligned(float* values, cudaStream_t stream);
cudaError_t Trap(cudaStream_t stream);
// *value = __CUDA_ARCH__.
cudaError_t ArchitectureOf(int* value, cudaStream_t stream);
// values[i] = table[i] * factors[i] for i < kTableEntries: __device__ and __constant__ variables.
cudaError_t ReadSymbols(float* values, cudaStream_t stream);
// Reverses [count] floats through dynamic shared memory. Through cudaLaunchKernelExC when `extended`.
cudaError_t Reverse(float* values, int count, size_t shared_bytes, bool extended, cudaStream_t stream);
cudaError_t AllowSharedBytes(size_t bytes);  // for Reverse
cudaError_t AttributesOfReverse(cudaFuncAttributes* attributes);
cudaError_t ResidentBlocksOfReverse(int* blocks, int threads, size_t shared_bytes);
// An empty kernel in one block of `threads`.
cudaError_t LaunchOfThreads(int threads, cudaStream_t stream);

const void* TableSymbol();
const void* FactorsSymbol();

}  // namespace tessera::vgpu
