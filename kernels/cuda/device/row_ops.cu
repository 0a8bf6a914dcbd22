#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/row_ops.h"
#include "kernels/cuda/device/store.cuh"

namespace tessera::cuda {
namespace {

// One warp per row and head. The sum is fp64 as on the CPU: it cannot overflow, and memory sets the pace.
__global__ void __launch_bounds__(kStepThreads) RmsNorm(const __grid_constant__ NormParams p) {
  const int64_t item = WarpItem();
  if (item >= p.shape.rows * p.shape.heads) return;
  const int64_t row = item / p.shape.heads, head = item % p.shape.heads;
  const int64_t in = row * p.in.row_stride + head * p.in.head_stride;
  const int64_t out = row * p.out.row_stride + head * p.out.head_stride;
  double sum = 0;
  for (int i = Lane(); i < p.shape.width; i += 32) {
    const double x = static_cast<double>(LoadFloat(p.in.data, p.in_type, in + i));
    sum += x * x;
  }
  const double mean = WarpSum(sum) / p.shape.width;
  const float factor = static_cast<float>(1.0 / sqrt(mean + static_cast<double>(p.epsilon)));
  for (int i = Lane(); i < p.shape.width; i += 32) {
    const float scale = p.gamma == nullptr ? factor : factor * p.gamma[i];
    StoreRounded(p.out.data, p.out_type, out + i, LoadFloat(p.in.data, p.in_type, in + i) * scale);
  }
}

// One thread per pair of columns.
__global__ void __launch_bounds__(kStepThreads) Rope(const __grid_constant__ RopeParams p) {
  const int half = p.shape.width / 2;
  const int64_t item = ThreadItem();
  if (item >= p.shape.rows * p.shape.heads * half) return;
  const int pair = static_cast<int>(item % half);
  const int64_t row = item / half / p.shape.heads, head = item / half % p.shape.heads;
  const int64_t start = row * p.rows.row_stride + head * p.rows.head_stride;
  const int64_t first = start + (p.interleaved ? 2 * pair : pair);
  const int64_t second = p.interleaved ? first + 1 : first + half;
  const float* const angle = p.table + (p.positions[row] * half + pair) * 2;
  const float cosine = angle[0], sine = angle[1];
  const float x1 = LoadFloat(p.rows.data, p.type, first), x2 = LoadFloat(p.rows.data, p.type, second);
  StoreRounded(p.rows.data, p.type, first, x1 * cosine - x2 * sine);
  StoreRounded(p.rows.data, p.type, second, x2 * cosine + x1 * sine);
}

// One thread per element.
__global__ void __launch_bounds__(kStepThreads) Scale(const __grid_constant__ ScaleParams p) {
  const int64_t item = ThreadItem();
  if (item >= p.shape.rows * p.shape.heads * p.shape.width) return;
  const int64_t i = item % p.shape.width;
  const int64_t row = item / p.shape.width / p.shape.heads, head = item / p.shape.width % p.shape.heads;
  const float value = LoadFloat(p.in.data, p.in_type, row * p.in.row_stride + head * p.in.head_stride + i);
  StoreRounded(p.out.data, p.out_type, row * p.out.row_stride + head * p.out.head_stride + i, p.scale * value);
}

// One thread block per row and head, the row in shared memory. A butterfly step doubles the width that is transformed.
__global__ void __launch_bounds__(kStepThreads) Hadamard(const __grid_constant__ HadamardParams p) {
  extern __shared__ float x[];
  const int64_t row = blockIdx.x, head = blockIdx.y;
  const int64_t in = row * p.in.row_stride + head * p.in.head_stride;
  const int64_t out = row * p.out.row_stride + head * p.out.head_stride;
  const int width = p.shape.width;
  for (int i = static_cast<int>(threadIdx.x); i < width; i += kStepThreads) {
    x[i] = LoadFloat(p.in.data, p.in_type, in + i) * (p.signs == nullptr ? 1.0f : p.signs[i]);
  }
  for (int span = 1; span < width; span *= 2) {
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < width / 2; i += kStepThreads) {
      const int first = i / span * 2 * span + i % span;
      const float a = x[first], b = x[first + span];
      x[first] = a + b;
      x[first + span] = a - b;
    }
  }
  __syncthreads();
  const float scale = 1.0f / sqrtf(static_cast<float>(width));
  for (int i = static_cast<int>(threadIdx.x); i < width; i += kStepThreads) {
    StoreRounded(p.out.data, p.out_type, out + i, x[i] * scale);
  }
}

// One warp per row and head.
template <typename Word>
__global__ void __launch_bounds__(kStepThreads) CopyCacheRows(const __grid_constant__ CacheCopyParams p) {
  const int64_t item = WarpItem();
  if (item >= p.rows * p.heads) return;
  const int64_t row = item / p.heads, head = item % p.heads;
  const CacheSlot slot = p.slots[row];
  if (slot.page < 0) return;
  std::byte* const pooled = p.pool + slot.page * p.page_stride + slot.row * p.row_stride + head * p.head_stride;
  std::byte* const dense = p.dense + row * p.dense_row_stride + head * p.dense_head_stride;
  auto* const to = reinterpret_cast<Word*>(p.into_pool ? pooled : dense);
  const auto* const from = reinterpret_cast<const Word*>(p.into_pool ? dense : pooled);
  for (int i = Lane(); i < p.row_bytes / static_cast<int>(sizeof(Word)); i += 32) to[i] = from[i];
}

template <typename Word>
int CopyWords(const CacheCopyParams& params, CUstream_st* stream) {
  CopyCacheRows<Word><<<BlocksOfWarps(params.rows * params.heads), kStepThreads, 0, stream>>>(params);
  return cudaGetLastError();
}

}  // namespace

int LaunchRmsNorm(const NormParams& params, CUstream_st* stream) {
  const int64_t items = params.shape.rows * params.shape.heads;
  if (items == 0) return cudaSuccess;
  RmsNorm<<<BlocksOfWarps(items), kStepThreads, 0, stream>>>(params);
  return cudaGetLastError();
}

int LaunchScale(const ScaleParams& params, CUstream_st* stream) {
  const int64_t items = params.shape.rows * params.shape.heads * params.shape.width;
  if (items == 0) return cudaSuccess;
  Scale<<<BlocksOfThreads(items), kStepThreads, 0, stream>>>(params);
  return cudaGetLastError();
}

int LaunchRope(const RopeParams& params, CUstream_st* stream) {
  const int64_t items = params.shape.rows * params.shape.heads * (params.shape.width / 2);
  if (items == 0) return cudaSuccess;
  Rope<<<BlocksOfThreads(items), kStepThreads, 0, stream>>>(params);
  return cudaGetLastError();
}

int LaunchHadamard(const HadamardParams& params, CUstream_st* stream) {
  if (params.shape.rows == 0 || params.shape.heads == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(params.shape.rows), params.shape.heads);
  Hadamard<<<grid, kStepThreads, params.shape.width * sizeof(float), stream>>>(params);
  return cudaGetLastError();
}

int LaunchCacheCopy(const CacheCopyParams& params, CUstream_st* stream) {
  if (params.rows == 0 || params.heads == 0 || params.row_bytes == 0) return cudaSuccess;
  const auto bits = reinterpret_cast<uintptr_t>(params.pool) | reinterpret_cast<uintptr_t>(params.dense) |
                    static_cast<uintptr_t>(params.page_stride | params.row_stride | params.head_stride |
                                           params.dense_row_stride | params.dense_head_stride | params.row_bytes);
  if (bits % 16 == 0) return CopyWords<uint4>(params, stream);
  return bits % 4 == 0 ? CopyWords<uint32_t>(params, stream) : CopyWords<uint16_t>(params, stream);
}

}  // namespace tessera::cuda
