// Partials: merging and finishing. One warp per row and head.
#include <cmath>

#include "kernels/cuda/device/element.cuh"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/steps.h"
#include "kernels/cuda/device/store.cuh"

namespace tessera::cuda {
namespace {

// The branches are those of the CPU's Merge (kernels/merge.cc): a side whose LSE is -infinity leaves the other as it is
// bit for bit, and equal infinities average.
__global__ void __launch_bounds__(kStepThreads) Merge(const __grid_constant__ MergeParams p) {
  const int64_t item = WarpItem();
  if (item >= p.shape.rows * p.shape.heads) return;
  const int64_t row = item / p.shape.heads, head = item % p.shape.heads;
  float* const lse = p.lse.data + row * p.lse.row_stride + head * p.lse.head_stride;
  float* const out = p.output.data + row * p.output.row_stride + head * p.output.head_stride;
  const float* const other = p.other_output.data + row * p.other_output.row_stride + head * p.other_output.head_stride;
  const float own = *lse;
  const float added = p.other_lse.data[row * p.other_lse.row_stride + head * p.other_lse.head_stride];
  if (added == -INFINITY) return;
  const float minor = added == own ? 1.0f : expf(-fabsf(added - own));
  const float minor_share = minor / (1.0f + minor);
  float share = added > own ? 1.0f - minor_share : minor_share;
  if (own == -INFINITY) share = 1.0f;
  if (share != 0.0f) {
    for (int i = Lane(); i < p.shape.width; i += 32) {
      out[i] = share == 1.0f ? other[i] : out[i] + share * (other[i] - out[i]);
    }
  }
  __syncwarp();  // every lane has read the sum
  if (Lane() == 0 && share != 0.0f) *lse = own == -INFINITY ? added : fmaxf(own, added) + log1pf(minor);
}

// log(exp(a) + exp(b)); infinities give what the limit gives.
__device__ float LogAddExp(float a, float b) {
  const float high = fmaxf(a, b), low = fminf(a, b);
  if (low == -INFINITY || high == INFINITY) return high;
  return high + log1pf(expf(low - high));
}

__global__ void __launch_bounds__(kStepThreads) Finish(const __grid_constant__ FinishParams p) {
  const int64_t item = WarpItem();
  if (item >= p.shape.rows * p.shape.heads) return;
  const int64_t row = item / p.shape.heads, head = item % p.shape.heads;
  const float keys = p.lse.data[row * p.lse.row_stride + head * p.lse.head_stride];
  // The maximum and minimum of LogAddExp drop a NaN, which has to stay.
  const float total = p.sinks == nullptr || isnan(keys) ? keys : LogAddExp(keys, p.sinks[head]);
  float share = 1.0f;
  if (keys == -INFINITY) {
    share = 0.0f;
  } else if (keys != total) {
    share = expf(keys - total);
  }
  const float* const in = p.output.data + row * p.output.row_stride + head * p.output.head_stride;
  const int64_t first = row * p.result.row_stride + head * p.result.head_stride;
  for (int i = Lane(); i < p.shape.width; i += 32) {
    StoreRounded(p.result.data, p.result_type, first + i, share == 0.0f ? 0.0f : in[i] * share);
  }
  if (Lane() == 0) p.result_lse.data[row * p.result_lse.row_stride + head * p.result_lse.head_stride] = total;
}

}  // namespace

int LaunchMerge(const MergeParams& params, CUstream_st* stream) {
  const int64_t items = params.shape.rows * params.shape.heads;
  if (items == 0) return cudaSuccess;
  Merge<<<BlocksOfWarps(items), kStepThreads, 0, stream>>>(params);
  return cudaGetLastError();
}

int LaunchFinish(const FinishParams& params, CUstream_st* stream) {
  const int64_t items = params.shape.rows * params.shape.heads;
  if (items == 0) return cudaSuccess;
  Finish<<<BlocksOfWarps(items), kStepThreads, 0, stream>>>(params);
  return cudaGetLastError();
}

}  // namespace tessera::cuda
