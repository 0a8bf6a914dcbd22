// What a warp does with the query rows it holds in accumulators of m16n8: scores become weights, which are folded into
// partials. For any family of tensor cores. Online softmax after Dao, FlashAttention-2 (arXiv 2307.08691).
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/cuda/device/attend_params.h"
#include "kernels/cuda/device/score.cuh"
#include "kernels/cuda/device/walk.cuh"

namespace tessera::cuda {

// 16 kTiles rows of a block, whose keys come in pieces of kKeys.
template <typename Element, int kV, int kTiles, int kKeys>
class AttendRows {
  static constexpr int kColumns = kKeys / 4;  // of a row in one lane

 public:
  // `warp_row` is the first of the warp's rows in the block.
  __device__ __forceinline__ AttendRows(const AttendParams& params, int warp_row)
      : p_(params), scoring_(params.score), lane_(static_cast<int>(threadIdx.x) % 32), warp_row_(warp_row) {
#pragma unroll
    for (int i = 0; i < kTiles * 2; ++i) max_[i / 2][i % 2] = -INFINITY;
  }

  // Read and computed again where they are needed, instead of kept in registers.
  __device__ __forceinline__ RowBlock block() const {
    return p_.work.blocks[blockIdx.x];
  }
  __device__ __forceinline__ int head() const {
    return static_cast<int>(blockIdx.y);
  }
  __device__ __forceinline__ int kv_head() const {
    return (p_.score.first_query_head + head()) / p_.score.group - p_.score.first_kv_head;
  }
  __device__ __forceinline__ int lane() const {
    return lane_;
  }
  __device__ __forceinline__ int warp_row() const {
    return warp_row_;
  }
  // Sums of weighted values; what Weigh() asked for was done to all that is in them.
  __device__ __forceinline__ float (&output())[kTiles][kV / 8][4] {
    return output_;
  }

  // Dot products become scores, where that takes more than a factor.
  __device__ __forceinline__ bool transforms() const {
    return scoring_.transforms;
  }
  __device__ __forceinline__ void Transform(const Piece<kKeys>& piece, float (&s)[kTiles][kKeys / 8][4]) const {
    Transform(p_.work.runs[piece.run], piece.offset, s);
  }

  // Scores become weights, relative to maxima that the output has to be rescaled to.
  __device__ __forceinline__ void Weigh(const Piece<kKeys>& piece, float (&s)[kTiles][kKeys / 8][4],
                                        float (&rescale)[kTiles][2]) {
    const struct Run& run = p_.work.runs[piece.run];
    const int rows = piece.rows(p_.work.runs);
    const int first_column = lane_ % 4 * 2;
    const bool masked = run.bands > 0;
    if (masked || rows < kKeys) {
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const uint32_t met =
              masked ? MetColumns<kColumns>(p_.work, run, piece.offset, rows, RowOf(t, half), first_column)
                     : PresentColumns<kColumns>(rows, first_column);
#pragma unroll
          for (int i = 0; i < kColumns; ++i) {
            float& score = s[t][i / 2][half * 2 + i % 2];
            if ((met >> i & 1) == 0) score = -INFINITY;
          }
        }
      }
    }
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int half = 0; half < 2; ++half) rescale[t][half] = Normalise(s[t], t, half);
    }
  }

  __device__ __forceinline__ void Rescale(const float (&rescale)[kTiles][2]) {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int n = 0; n < kV / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) output_[t][n][i] *= rescale[t][i / 2];
      }
    }
  }

  // Merges with the partials that were there.
  __device__ __forceinline__ void Store() {
    const RowBlock block = this->block();
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = RowOf(t, half);
        const bool exists = row < block.rows;
        float* const lse = p_.lse.data + (block.first_row + row) * p_.lse.row_stride + head() * p_.lse.head_stride;
        const float before = exists ? *lse : -INFINITY;
        float sum = sum_[t][half];
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        const float max = max_[t][half];
        if (!exists || (max == -INFINITY && sum == 0.0f)) continue;  // no such row, or it saw nothing
        const float top = fmaxf(max, before * kLog2E);
        const float new_weight = Exp2(max - top);
        const float old_weight = before == -INFINITY ? 0.0f : Exp2(before * kLog2E - top);
        const float total = sum * new_weight + old_weight;
        const float new_share = new_weight / total, old_share = old_weight / total;
        if (lane_ % 4 == 0) *lse = top * kLn2 + logf(total);
        float* const output =
            p_.output.data + (block.first_row + row) * p_.output.row_stride + head() * p_.output.head_stride;
#pragma unroll
        for (int n = 0; n < kV / 8; ++n) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const int column = n * 8 + lane_ % 4 * 2 + i;
            if (column >= p_.score.v_width) continue;
            float o = output_[t][n][half * 2 + i] * new_share;
            if (old_share != 0.0f) o += output[column] * old_share;
            output[column] = o;
          }
        }
      }
    }
  }

  // Rare and slow: adds the values that were taken out of masked pieces to the stored output. Their weights do not
  // matter, since infinity times a weight is infinity and NaN stays NaN.
  __device__ __forceinline__ void AddNonFinite() const {
    const RowBlock block = this->block();
    __syncwarp();
    for (int r = block.first_run; r < block.first_run + block.runs; ++r) {
      const struct Run& run = p_.work.runs[r];
      if (run.bands == 0) continue;
      for (int key = 0; key < run.rows; ++key) {
        const uint16_t* const value =
            p_.value.data + int64_t{run.first_row + key} * p_.value.row_stride + kv_head() * p_.value.head_stride;
        for (int column = lane_; column < p_.score.v_width; column += 32) {
          const float v = Element::ToFloat(value[column]);
          if (fabsf(v) < INFINITY) continue;
          for (int row = warp_row_; row < min(warp_row_ + 16 * kTiles, block.rows); ++row) {
            if (!Meets(p_.work, run, row, key)) continue;
            p_.output.data[int64_t{block.first_row + row} * p_.output.row_stride + head() * p_.output.head_stride +
                           column] += v;
          }
        }
      }
    }
  }

 private:
  // Row of the block that lane holds in half 0 or 1 of accumulators of row tile t.
  __device__ __forceinline__ int RowOf(int t, int half) const {
    return warp_row_ + t * 16 + half * 8 + lane_ / 4;
  }

  // In passes that are branched around as a whole: branches per element would keep everything's operands in registers.
  __device__ __forceinline__ void Transform(const struct Run& run, int offset, float (&s)[kTiles][kKeys / 8][4]) const {
    const bool caps = p_.score.soft_cap > 0;
    ForEach(s, [&](float& x) { x *= caps ? p_.score.scale_in_cap : p_.score.scale * kLog2E; });
    if (caps) ForEach(s, [&](float& x) { x = tanhf(x) * (p_.score.soft_cap * kLog2E); });
    if (p_.score.slopes != nullptr) {
      const float slope = p_.score.slopes[head()] * kLog2E;
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int32_t query_token = run.block_token + RowOf(t, half) * run.block_stride;
          // Opaque to the compiler, which would keep the tokens of all columns in registers from one row to the next.
          int32_t stride = run.stride;
          asm volatile("" : "+r"(stride));
          const int32_t key_token = run.first_token + (offset + lane_ % 4 * 2) * stride;
#pragma unroll
          for (int i = 0; i < kColumns; ++i) {
            const int32_t token = key_token + (i / 2 * 8 + i % 2) * stride;
            s[t][i / 2][half * 2 + i % 2] -= slope * Distance(p_.score, query_token, token);
          }
        }
      }
    }
  }

  template <typename Change>
  static __device__ __forceinline__ void ForEach(float (&s)[kTiles][kKeys / 8][4], Change change) {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int i = 0; i < kColumns; ++i) change(s[t][i / 2][half * 2 + i % 2]);
      }
    }
  }

  // Scores of a row become weights relative to its new maximum. Returns the factor that everything summed so far needs.
  __device__ __forceinline__ float Normalise(float (&s)[kKeys / 8][4], int t, int half) {
    float top = -INFINITY;
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) top = fmaxf(top, fmaxf(s[n][half * 2], s[n][half * 2 + 1]));
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
    const float before = max_[t][half];
    const float max = fmaxf(before, top * scoring_.factor);
    max_[t][half] = max;
    const float reference = max == -INFINITY ? 0.0f : max;
    float sum = 0;
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float& x = s[n][half * 2 + i];
        x = Exp2(fmaf(x, scoring_.factor, -reference));
        sum += x;
      }
    }
    const float rescale = Exp2(before - reference);
    sum_[t][half] = sum_[t][half] * rescale + sum;
    return rescale;
  }

  const AttendParams& p_;
  const Scoring scoring_;
  const int lane_, warp_row_;
  float output_[kTiles][kV / 8][4] = {};  // relative to max_
  float max_[kTiles][2];                  // of scores in units of log2
  float sum_[kTiles][2] = {};             // of this lane's columns
};

}  // namespace tessera::cuda
