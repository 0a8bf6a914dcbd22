// Rows copied, added, rounded and set.
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/steps.h"
#include "kernels/cuda/device/store.cuh"

namespace tessera::cuda {
namespace {

__global__ void __launch_bounds__(kStepThreads) Add(const __grid_constant__ AddParams p) {
  const int64_t row_elements = int64_t{p.shape.heads} * p.shape.width;
  const int64_t item = ThreadItem();
  if (item >= p.shape.rows * row_elements) return;
  const int64_t row = item / row_elements, i = item % row_elements;
  p.destination[row * p.destination_stride + i] += p.source[row * p.source_stride + i];
}

__global__ void __launch_bounds__(kStepThreads)
    Round(void* destination, ElementType type, const float* source, int64_t count) {
  const int64_t item = ThreadItem();
  if (item < count) StoreRounded(destination, type, item, source[item]);
}

__global__ void __launch_bounds__(kStepThreads) Fill(float* destination, float value, int64_t count) {
  const int64_t item = ThreadItem();
  if (item < count) destination[item] = value;
}

template <typename Word>
__global__ void __launch_bounds__(kStepThreads) CopyRows(const __grid_constant__ CopyParams p) {
  const int64_t row_words = p.row_bytes / static_cast<int64_t>(sizeof(Word));
  const int64_t item = ThreadItem();
  if (item >= p.rows * row_words) return;
  const int64_t row = item / row_words, i = item % row_words;
  reinterpret_cast<Word*>(p.destination + row * p.destination_pitch)[i] =
      reinterpret_cast<const Word*>(p.source + row * p.source_pitch)[i];
}

template <typename Word>
bool Fits(const CopyParams& p) {
  const auto bits = reinterpret_cast<uintptr_t>(p.destination) | reinterpret_cast<uintptr_t>(p.source) |
                    static_cast<uintptr_t>(p.destination_pitch | p.source_pitch | p.row_bytes);
  return bits % sizeof(Word) == 0;
}

template <typename Word>
int Copy(const CopyParams& params, CUstream_st* stream) {
  const int64_t words = params.rows * (params.row_bytes / static_cast<int64_t>(sizeof(Word)));
  CopyRows<Word><<<BlocksOfThreads(words), kStepThreads, 0, stream>>>(params);
  return cudaGetLastError();
}

}  // namespace

int LaunchAdd(const AddParams& params, CUstream_st* stream) {
  const int64_t items = params.shape.rows * params.shape.heads * params.shape.width;
  if (items == 0) return cudaSuccess;
  Add<<<BlocksOfThreads(items), kStepThreads, 0, stream>>>(params);
  return cudaGetLastError();
}

int LaunchRound(void* destination, ElementType type, const float* source, int64_t count, CUstream_st* stream) {
  if (count == 0) return cudaSuccess;
  Round<<<BlocksOfThreads(count), kStepThreads, 0, stream>>>(destination, type, source, count);
  return cudaGetLastError();
}

int LaunchFill(float* destination, float value, int64_t count, CUstream_st* stream) {
  if (count == 0) return cudaSuccess;
  Fill<<<BlocksOfThreads(count), kStepThreads, 0, stream>>>(destination, value, count);
  return cudaGetLastError();
}

int LaunchZero(void* destination, int64_t bytes, CUstream_st* stream) {
  return bytes == 0 ? cudaSuccess : cudaMemsetAsync(destination, 0, static_cast<size_t>(bytes), stream);
}

int LaunchCopyRows(const CopyParams& params, CUstream_st* stream) {
  if (params.rows == 0 || params.row_bytes == 0) return cudaSuccess;
  if (Fits<uint4>(params)) return Copy<uint4>(params, stream);
  if (Fits<uint32_t>(params)) return Copy<uint32_t>(params, stream);
  if (Fits<uint16_t>(params)) return Copy<uint16_t>(params, stream);
  return Copy<uint8_t>(params, stream);
}

}  // namespace tessera::cuda
