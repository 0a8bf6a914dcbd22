#include "tests/virtual_gpu/cudart/test_kernels.h"

namespace tessera::vgpu {
namespace {

__device__ float table[kTableEntries] = {1, 2, 3, 4, 5, 6, 7, 8};
__constant__ float factors[kTableEntries];

__global__ void ScaleKernel(float* values, int count, float factor) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) values[i] = values[i] * factor + 1.0f;
}

__global__ void WriteAtKernel(float* values, long long index) {
  values[index] = 1;
}

__global__ void WriteMisalignedKernel(char* bytes) {
  *reinterpret_cast<float*>(bytes + 1) = 1;
}

__global__ void TrapKernel() {
  __trap();
}

__global__ void ArchitectureKernel(int* value) {
#ifdef __CUDA_ARCH__
  *value = __CUDA_ARCH__;
#endif
}

__global__ void ReadSymbolsKernel(float* values) {
  values[threadIdx.x] = table[threadIdx.x] * factors[threadIdx.x];
}

__global__ void ReverseKernel(float* values, int count) {
  extern __shared__ float shared[];
  for (int i = threadIdx.x; i < count; i += blockDim.x) shared[i] = values[i];
  __syncthreads();
  for (int i = threadIdx.x; i < count; i += blockDim.x) values[i] = shared[count - 1 - i];
}

__global__ void NothingKernel() {}

}  // namespace

cudaError_t Scale(float* values, int count, float factor, cudaStream_t stream) {
  ScaleKernel<<<(count + 63) / 64, 64, 0, stream>>>(values, count, factor);
  return cudaGetLastError();
}

cudaError_t WriteAt(float* values, long long index, cudaStream_t stream) {
  WriteAtKernel<<<1, 1, 0, stream>>>(values, index);
  return cudaGetLastError();
}

cudaError_t WriteMisaligned(float* values, cudaStream_t stream) {
  WriteMisalignedKernel<<<1, 1, 0, stream>>>(reinterpret_cast<char*>(values));
  return cudaGetLastError();
}

cudaError_t Trap(cudaStream_t stream) {
  TrapKernel<<<1, 1, 0, stream>>>();
  return cudaGetLastError();
}

cudaError_t ArchitectureOf(int* value, cudaStream_t stream) {
  ArchitectureKernel<<<1, 1, 0, stream>>>(value);
  return cudaGetLastError();
}

cudaError_t ReadSymbols(float* values, cudaStream_t stream) {
  ReadSymbolsKernel<<<1, kTableEntries, 0, stream>>>(values);
  return cudaGetLastError();
}

cudaError_t Reverse(float* values, int count, size_t shared_bytes, bool extended, cudaStream_t stream) {
  if (extended) {
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 0;
    cudaLaunchConfig_t config{};
    config.gridDim = 1;
    config.blockDim = 32;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = 1;
    return cudaLaunchKernelEx(&config, ReverseKernel, values, count);
  }
  ReverseKernel<<<1, 32, shared_bytes, stream>>>(values, count);
  return cudaGetLastError();
}

cudaError_t AllowSharedBytes(size_t bytes) {
  return cudaFuncSetAttribute(ReverseKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
}

cudaError_t AttributesOfReverse(cudaFuncAttributes* attributes) {
  return cudaFuncGetAttributes(attributes, ReverseKernel);
}

cudaError_t ResidentBlocksOfReverse(int* blocks, int threads, size_t shared_bytes) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, ReverseKernel, threads, shared_bytes);
}

cudaError_t LaunchOfThreads(int threads, cudaStream_t stream) {
  NothingKernel<<<1, threads, 0, stream>>>();
  return cudaGetLastError();
}

const void* TableSymbol() {
  return table;
}
const void* FactorsSymbol() {
  return factors;
}

}  // namespace tessera::vgpu
