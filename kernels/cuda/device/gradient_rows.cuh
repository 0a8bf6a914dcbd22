// What a warp of a backward kernel does with the rows it owns, in accumulators of m16n8: dot products become
// probabilities and derivatives of scores, and sums of gradients are added to what was there. For any family of tensor
// cores.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/cuda/device/attend_params.h"
#include "kernels/cuda/device/score.cuh"
#include "kernels/cuda/device/walk.cuh"

namespace tessera::cuda {

// What a thread block accumulates.
enum class Gradient { kQuery, kKeyAndValue, kKey, kValue };

template <Gradient kGradient>
inline constexpr bool kOwnsQueries = kGradient == Gradient::kQuery;
template <Gradient kGradient>  // of the first tensor that the block owns, and so dP
inline constexpr bool kFirst = kGradient != Gradient::kValue;
template <Gradient kGradient>  // of the second
inline constexpr bool kSecond = kGradient == Gradient::kKeyAndValue || kGradient == Gradient::kValue;

template <Gradient kGradient>
__device__ __forceinline__ const DeviceWork& WorkOf(const BackwardParams& params) {
  return kOwnsQueries<kGradient> ? params.by_queries : params.by_keys;
}

// Place in the stream of kOther rows at a time: for keys, the query heads that read them one after the other.
template <Gradient kGradient, int kOther>
struct GradientCursor {
  Piece<kOther> piece;
  int head;

  __device__ __forceinline__ GradientCursor(const BackwardParams& params, const RowBlock& block)
      : piece{block.first_run, 0} {
    const int own = static_cast<int>(blockIdx.y);
    if constexpr (kOwnsQueries<kGradient>) {
      head = (params.score.first_query_head + own) / params.score.group - params.score.first_kv_head;
    } else {
      head = max(Begin(params), 0);
    }
  }
  // Past the last head; no query head of a call may read a block's keys.
  static __device__ __forceinline__ int EndHead(const BackwardParams& params, int first_head) {
    return kOwnsQueries<kGradient> ? first_head + 1 : min(Begin(params) + params.score.group, params.score.heads);
  }
  // False at the end.
  __device__ __forceinline__ bool Next(const Run* runs, const RowBlock& block, int end_head) {
    if (piece.Next(runs, block.first_run + block.runs)) return true;
    piece = {block.first_run, 0};
    return ++head < end_head;
  }

 private:
  static __device__ __forceinline__ int Begin(const BackwardParams& params) {
    return (params.score.first_kv_head + static_cast<int>(blockIdx.y)) * params.score.group -
           params.score.first_query_head;
  }
};

template <Gradient kGradient, int kOther>
class GradientRows {
  static constexpr bool kQueries = kOwnsQueries<kGradient>;
  static constexpr int kColumns = kOther / 4;  // of a row in one lane

 public:
  using Cursor = GradientCursor<kGradient, kOther>;

  // `warp_row` is the first of the warp's 16 rows in the block.
  __device__ __forceinline__ GradientRows(const BackwardParams& params, int warp_row)
      : p_(params), scoring_(params.score), lane_(static_cast<int>(threadIdx.x) % 32), warp_row_(warp_row) {}

  __device__ __forceinline__ bool transforms() const { return scoring_.transforms; }

  // LSE and delta of own rows, where those are queries. Needs a block that has rows.
  __device__ __forceinline__ void LoadOwnStatistics(const RowBlock& block) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t row = block.first_row + min(warp_row_ + half * 8 + lane_ / 4, block.rows - 1);
      lse_[half] = InLog2(p_.lse.data[row * p_.lse.row_stride + head() * p_.lse.head_stride]);
      delta_[half] = p_.delta.data[row * p_.delta.row_stride + head() * p_.delta.head_stride];
    }
  }

  // Dot products become scores in units of log2, and `ds`, dP - delta, is multiplied by the derivative of the cap. For
  // calls whose scores take more than a factor.
  __device__ __forceinline__ void Transform(const Cursor& cursor, float (&s)[kOther / 8][4],
                                            float (&ds)[kOther / 8][4]) const {
    const struct Run& run = WorkOf<kGradient>(p_).runs[cursor.piece.run];
    const float slope = p_.score.slopes == nullptr ? 0.0f : p_.score.slopes[kQueries ? head() : cursor.head];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int32_t own_token = run.block_token + (warp_row_ + half * 8 + lane_ / 4) * run.block_stride;
#pragma unroll
      for (int i = 0; i < kColumns; ++i) {
        float& x = s[i / 2][half * 2 + i % 2];
        float score = x * p_.score.scale;
        if (p_.score.soft_cap > 0) {
          const float t = tanhf(x * p_.score.scale_in_cap);
          score = p_.score.soft_cap * t;
          ds[i / 2][half * 2 + i % 2] *= 1 - t * t;
        }
        if (slope != 0.0f) {
          const int32_t other_token = run.first_token + (cursor.piece.offset + ColumnOf(i)) * run.stride;
          score -= slope *
                   (kQueries ? Distance(p_.score, own_token, other_token) : Distance(p_.score, other_token, own_token));
        }
        x = score * kLog2E;
      }
    }
  }

  // Scores become probabilities. `met` receives the columns that each half's row meets. `statistics`: LSE, then delta,
  // of other rows in shared memory, where those are queries.
  __device__ __forceinline__ void Probabilities(const Cursor& cursor, uint32_t statistics, float (&s)[kOther / 8][4],
                                                uint32_t (&met)[2]) const {
    const DeviceWork& work = WorkOf<kGradient>(p_);
    const struct Run& run = work.runs[cursor.piece.run];
    const int rows = cursor.piece.rows(work.runs);
    const int first_column = lane_ % 4 * 2;
    float column_lse[kQueries ? 1 : kColumns];
    if constexpr (!kQueries) {
#pragma unroll
      for (int i = 0; i < kColumns; ++i) column_lse[i] = InLog2(LoadStatistic(statistics + ColumnOf(i) * 4));
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = warp_row_ + half * 8 + lane_ / 4;
      met[half] = run.bands > 0 ? MetColumns<kColumns>(work, run, cursor.piece.offset, rows, row, first_column)
                                : PresentColumns<kColumns>(rows, first_column);
#pragma unroll
      for (int i = 0; i < kColumns; ++i) {
        float& x = s[i / 2][half * 2 + i % 2];
        const bool meets = (met[half] >> i & 1) != 0;
        x = Exp2(fmaf(meets ? x : -INFINITY, scoring_.factor, -(kQueries ? lse_[half] : column_lse[i])));
      }
    }
  }

  // dP becomes dP - delta.
  __device__ __forceinline__ void SubtractDelta(uint32_t statistics, float (&ds)[kOther / 8][4]) const {
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      const float column = kQueries ? 0.0f : LoadStatistic(statistics + (kOther + ColumnOf(i)) * 4);
      ds[i / 2][i % 2] -= kQueries ? delta_[0] : column;
      ds[i / 2][2 + i % 2] -= kQueries ? delta_[1] : column;
    }
  }

  // dP - delta becomes the derivative of the score, without the scale.
  static __device__ __forceinline__ void Weigh(const float (&s)[kOther / 8][4], const uint32_t (&met)[2],
                                               float (&ds)[kOther / 8][4]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < kColumns; ++i) {
        float& x = ds[i / 2][half * 2 + i % 2];
        x = (met[half] >> i & 1) != 0 ? s[i / 2][half * 2 + i % 2] * x : 0.0f;
      }
    }
  }

  // Adds this warp's rows to a gradient.
  template <int kTiles>
  __device__ __forceinline__ void Store(const RowBlock& block, const Matrix<float>& sums, int width, float scale,
                                        const float (&gradient)[kTiles][4]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = warp_row_ + half * 8 + lane_ / 4;
      if (row >= block.rows) continue;
      float* const out = sums.data + (block.first_row + row) * sums.row_stride + head() * sums.head_stride;
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int column = n * 8 + lane_ % 4 * 2 + i;
          if (column < width) out[column] += gradient[n][half * 2 + i] * scale;
        }
      }
    }
  }

 private:
  __device__ __forceinline__ int head() const {
    return static_cast<int>(blockIdx.y);
  }
  // The column of the other rows that a lane holds i-th.
  __device__ __forceinline__ int ColumnOf(int i) const {
    return i / 2 * 8 + lane_ % 4 * 2 + i % 2;
  }
  // Of a row that met nothing, infinity: then all its probabilities are 0.
  static __device__ __forceinline__ float InLog2(float lse) {
    return lse == -INFINITY ? INFINITY : lse * kLog2E;
  }
  static __device__ __forceinline__ float LoadStatistic(uint32_t address) {
    float value;
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(value) : "r"(address) : "memory");
    return value;
  }

  const BackwardParams& p_;
  const Scoring scoring_;
  const int lane_, warp_row_;
  float lse_[2], delta_[2];  // in units of log2, and as given
};

}  // namespace tessera::cuda
