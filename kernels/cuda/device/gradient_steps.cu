// What the backward pass needs around its kernels.
#include <cmath>

#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/steps.h"
#include "kernels/cuda/device/store.cuh"

namespace tessera::cuda {
namespace {

// One warp per row and head. fp64 as on the CPU: delta is subtracted from sums that it nearly equals, and one
// multiplication per two elements read stays below the memory's rate even where fp64 runs at 1/64.
__global__ void __launch_bounds__(kStepThreads) Delta(const __grid_constant__ DeltaParams p) {
  const int64_t item = WarpItem();
  if (item >= p.shape.rows * p.shape.heads) return;
  const int64_t row = item / p.shape.heads, head = item % p.shape.heads;
  const int64_t output = row * p.output.row_stride + head * p.output.head_stride;
  const int64_t gradient = row * p.gradient.row_stride + head * p.gradient.head_stride;
  double sum = 0;
  for (int i = Lane(); i < p.shape.width; i += 32) {
    sum += static_cast<double>(LoadFloat(p.output.data, p.type, output + i)) *
           static_cast<double>(LoadFloat(p.gradient.data, p.type, gradient + i));
  }
  sum = WarpSum(sum);
  if (Lane() == 0) p.delta.data[row * p.delta.row_stride + head * p.delta.head_stride] = static_cast<float>(sum);
}

// One thread block per head; threads take rows in strides and are added in a tree, so the bits never change.
__global__ void __launch_bounds__(kStepThreads) SinkGradient(const __grid_constant__ SinkGradientParams p) {
  __shared__ double parts[kStepThreads];
  const int64_t head = blockIdx.x;
  const double sink = static_cast<double>(p.sinks[head]);
  double sum = 0;
  for (int64_t row = threadIdx.x; row < p.shape.rows; row += kStepThreads) {
    const float lse = p.lse.data[row * p.lse.row_stride + head * p.lse.head_stride];
    if (lse == -INFINITY || p.sinks[head] == -INFINITY) continue;
    sum += exp(sink - static_cast<double>(lse)) *
           static_cast<double>(p.delta.data[row * p.delta.row_stride + head * p.delta.head_stride]);
  }
  parts[threadIdx.x] = sum;
  for (int distance = kStepThreads / 2; distance > 0; distance /= 2) {
    __syncthreads();
    if (threadIdx.x < distance) parts[threadIdx.x] += parts[threadIdx.x + distance];
  }
  if (threadIdx.x == 0) p.gradient[head] = static_cast<float>(static_cast<double>(p.gradient[head]) - parts[0]);
}

}  // namespace

int LaunchDelta(const DeltaParams& params, CUstream_st* stream) {
  const int64_t items = params.shape.rows * params.shape.heads;
  if (items == 0) return cudaSuccess;
  Delta<<<BlocksOfWarps(items), kStepThreads, 0, stream>>>(params);
  return cudaGetLastError();
}

int LaunchSinkGradient(const SinkGradientParams& params, CUstream_st* stream) {
  if (params.shape.heads == 0 || params.shape.rows == 0) return cudaSuccess;
  SinkGradient<<<params.shape.heads, kStepThreads, 0, stream>>>(params);
  return cudaGetLastError();
}

}  // namespace tessera::cuda
