// Merges the partial results of a decode step's splits, in the order of the splits. One warp per query row and head.
#include <cmath>

#include "kernels/cuda/device/decode_params.h"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/launch.h"

namespace tessera::cuda {
namespace {

__global__ void __launch_bounds__(kStepThreads) MergeSplits(const __grid_constant__ DecodeParams p) {
  const DecodeRows sequence = p.sequences[blockIdx.y];
  const int64_t item = WarpItem();
  if (item >= int64_t{sequence.rows} * p.score.heads) return;
  const int64_t row = sequence.first_query_row + item / p.score.heads, head = item % p.score.heads;
  const int64_t first = row * p.score.heads + head, step = p.query_rows * p.score.heads;
  float top = -INFINITY;
  bool poisoned = false;  // the maximum drops a NaN, which has to stay
  for (int split = 0; split < p.splits; ++split) {
    const float lse = p.split_lse[first + split * step];
    top = fmaxf(top, lse);
    poisoned |= isnan(lse);
  }
  const bool empty = top == -INFINITY && !poisoned;
  float total = 0;
  for (int split = 0; split < p.splits && !empty; ++split) total += expf(p.split_lse[first + split * step] - top);
  float* const output = p.output.data + row * p.output.row_stride + head * p.output.head_stride;
  for (int column = Lane(); column < p.score.v_width; column += 32) {
    float sum = 0;
    for (int split = 0; split < p.splits && !empty; ++split) {
      const float lse = p.split_lse[first + split * step];
      if (lse == -INFINITY) continue;
      sum += expf(lse - top) * p.split_output[(first + split * step) * p.score.v_width + column];
    }
    output[column] = empty ? 0.0f : sum / total;
  }
  if (Lane() == 0) {
    p.lse.data[row * p.lse.row_stride + head * p.lse.head_stride] = empty ? -INFINITY : top + logf(total);
  }
}

}  // namespace

int LaunchDecodeMerge(const DecodeParams& params, CUstream_st* stream) {
  const dim3 grid(BlocksOfWarps(int64_t{params.rows_per_sequence} * params.score.heads), params.sequence_count);
  MergeSplits<<<grid, kStepThreads, 0, stream>>>(params);
  return cudaGetLastError();
}

}  // namespace tessera::cuda
