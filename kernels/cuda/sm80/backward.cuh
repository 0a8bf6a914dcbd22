// Gradients of attention without atomic additions: a thread block owns rows of one side, streams the rows of the other
// side that they meet, recomputes the probabilities and adds to its own rows' gradients alone. Run once over blocks of
// query rows and once over blocks of key rows, so seven matrix products instead of the five that shared accumulators
// allow, and the same bits every time.
//
// Both passes are one algorithm. With own rows X1, X2 and other rows Y1, Y2 (queries and output gradients on one side,
// keys and values on the other):
//   S = X1 Y1^T,  dP = X2 Y2^T,  P = exp(S - LSE),  dS = P (dP - delta);  dX1 += dS Y1;  keys also: dX2 += P Y2.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/cuda/device/attend_params.h"
#include "kernels/cuda/device/poison.cuh"
#include "kernels/cuda/device/score.cuh"
#include "kernels/cuda/device/walk.cuh"
#include "kernels/cuda/sm80/backward_config.h"
#include "kernels/cuda/sm80/mma.cuh"
#include "kernels/cuda/sm80/tile.cuh"

namespace tessera::cuda::sm80 {

// What a thread block accumulates.
enum class Gradient { kQuery, kKeyAndValue, kKey, kValue };

template <typename Element, int kQk, int kV, Gradient kGradient>
class BackwardBlock {
  using Config = BackwardConfig<kQk, kV>;
  static constexpr bool kOwnsQueries = kGradient == Gradient::kQuery;
  static constexpr bool kFirst = kGradient != Gradient::kValue;  // dX1, and so dP
  static constexpr bool kSecond = kGradient == Gradient::kKeyAndValue || kGradient == Gradient::kValue;
  static constexpr int kOther = Config::kOtherRows;
  static constexpr int kColumns = kOther / 4;  // of a row in one lane
  using Tile1 = Tile<kQk>;
  using Tile2 = Tile<kV>;
  static constexpr uint32_t kOwn1Bytes = Config::kOwnRows * Tile1::kRowBytes;
  static constexpr uint32_t kOwn2Bytes = Config::kOwnRows * Tile2::kRowBytes;
  static constexpr uint32_t kOther1Bytes = kOther * Tile1::kRowBytes;
  static constexpr uint32_t kOther2Bytes = kOther * Tile2::kRowBytes;

  // Place in the stream of other rows: for keys, the query heads that read them one after the other.
  struct Cursor {
    Piece<kOther> piece;
    int head;
  };

 public:
  __device__ __forceinline__ BackwardBlock(const BackwardParams& params, uint32_t shared)
      : p_(params),
        work_(kOwnsQueries ? params.by_queries : params.by_keys),
        scoring_(params.score),
        own1_(shared),
        own2_(shared + kOwn1Bytes),
        stages_(shared + kOwn1Bytes + kOwn2Bytes),
        block_(work_.blocks[blockIdx.x]),
        own_head_(static_cast<int>(blockIdx.y)),
        lane_(static_cast<int>(threadIdx.x) % 32),
        warp_row_(static_cast<int>(threadIdx.x) / 32 * 16) {}

  __device__ __forceinline__ void Run() {
    int end_head;
    Cursor next{{block_.first_run, 0}, 0};
    if constexpr (kOwnsQueries) {
      next.head = (p_.score.first_query_head + own_head_) / p_.score.group - p_.score.first_kv_head;
      end_head = next.head + 1;
    } else {
      const int begin = (p_.score.first_kv_head + own_head_) * p_.score.group - p_.score.first_query_head;
      next.head = max(begin, 0);
      end_head = min(begin + p_.score.group, p_.score.heads);
      if (next.head >= end_head) return;  // no query head of this call reads these keys
    }
    LoadOwn();
    LoadStage(next, 0);
    CommitCopies();
    const bool active = warp_row_ < block_.rows;
    if constexpr (kOwnsQueries) LoadRowStatistics();
    bool more = true;
    for (int stage = 0; more; stage ^= 1) {
      const Cursor now = next;
      more = Advance(next, end_head);
      WaitForAllCopies();
      __syncthreads();  // the rows are there, and nobody reads the other stage any more
      if (more) {
        LoadStage(next, stage ^ 1);
        CommitCopies();
      }
      // Rows that are not finite would turn weights of 0 into NaN. Those that meet them get it from S and dP.
      const int thread = static_cast<int>(threadIdx.x);
      bool poisoned = false;
      if (now.piece.masked(work_.runs)) {
        bool any = kFirst && AnyNonFinite<Element, kOther1Bytes>(Other1(stage), thread, kThreads);
        if constexpr (kSecond) any |= AnyNonFinite<Element, kOther2Bytes>(Other2(stage), thread, kThreads);
        poisoned = __syncthreads_or(any) != 0;
      }
      float s[kOther / 8][4] = {};
      float ds[kOther / 8][4] = {};
      if (active) Products(stage, s, ds);
      if (poisoned) {
        __syncthreads();
        if constexpr (kFirst) ClearNonFinite<Element, kOther1Bytes>(Other1(stage), thread, kThreads);
        if constexpr (kSecond) ClearNonFinite<Element, kOther2Bytes>(Other2(stage), thread, kThreads);
        __syncthreads();
      }
      if (active) {
        Weights(now, stage, s, ds);
        if constexpr (kFirst) Accumulate<Tile1>(Other1(stage), ds, gradient1_);
        if constexpr (kSecond) Accumulate<Tile2>(Other2(stage), s, gradient2_);
      }
    }
    if (active) Store();
  }

 private:
  __device__ __forceinline__ uint32_t Other1(int stage) const { return stages_ + stage * Config::kStageBytes; }
  __device__ __forceinline__ uint32_t Other2(int stage) const { return Other1(stage) + kOther1Bytes; }
  __device__ __forceinline__ uint32_t Statistics(int stage) const { return Other2(stage) + kOther2Bytes; }

  __device__ __forceinline__ bool Advance(Cursor& cursor, int end_head) const {
    if (cursor.piece.Next(work_.runs, block_.first_run + block_.runs)) return true;
    cursor.piece = {block_.first_run, 0};
    return ++cursor.head < end_head;
  }

  template <typename Tile, int kRows>
  __device__ __forceinline__ void Load(uint32_t tile, const Matrix<const uint16_t>& matrix, int64_t row, int head,
                                       int rows, int width, bool vector) const {
    Tile::template Load<kRows>(tile, matrix.data + row * matrix.row_stride + head * matrix.head_stride,
                               matrix.row_stride, rows, width, vector);
  }

  __device__ __forceinline__ void LoadOwn() const {
    Load<Tile1, Config::kOwnRows>(own1_, kOwnsQueries ? p_.query : p_.key, block_.first_row, own_head_, block_.rows,
                                  p_.score.qk_width, p_.vector_qk);
    if constexpr (kFirst) {
      Load<Tile2, Config::kOwnRows>(own2_, kOwnsQueries ? p_.output_gradient : p_.value, block_.first_row, own_head_,
                                    block_.rows, p_.score.v_width, p_.vector_v);
    }
  }

  __device__ __forceinline__ void LoadStage(const Cursor& cursor, int stage) const {
    const int64_t row = cursor.piece.first_row(work_.runs);
    const int rows = cursor.piece.rows(work_.runs);
    Load<Tile1, kOther>(Other1(stage), kOwnsQueries ? p_.key : p_.query, row, cursor.head, rows, p_.score.qk_width,
                        p_.vector_qk);
    Load<Tile2, kOther>(Other2(stage), kOwnsQueries ? p_.value : p_.output_gradient, row, cursor.head, rows,
                        p_.score.v_width, p_.vector_v);
    if constexpr (!kOwnsQueries) {
      for (int i = static_cast<int>(threadIdx.x); i < 2 * kOther; i += kThreads) {
        const Matrix<const float>& from = i < kOther ? p_.lse : p_.delta;
        const bool inside = i % kOther < rows;
        const int64_t source = inside ? row + i % kOther : row;
        CopyWordAsync(Statistics(stage) + i * 4, from.data + source * from.row_stride + cursor.head * from.head_stride,
                      inside ? 4 : 0);
      }
    }
  }

  __device__ __forceinline__ void LoadRowStatistics() {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t row = block_.first_row + min(warp_row_ + half * 8 + lane_ / 4, block_.rows - 1);
      lse_[half] = InLog2(p_.lse.data[row * p_.lse.row_stride + own_head_ * p_.lse.head_stride]);
      delta_[half] = p_.delta.data[row * p_.delta.row_stride + own_head_ * p_.delta.head_stride];
    }
  }

  __device__ __forceinline__ void Products(int stage, float (&s)[kOther / 8][4], float (&dp)[kOther / 8][4]) const {
    Multiply<Tile1, kQk>(own1_, Other1(stage), s);
    if constexpr (kFirst) Multiply<Tile2, kV>(own2_, Other2(stage), dp);
  }

  // c += X Y^T for the warp's 16 rows.
  template <typename Tile, int kWidth>
  __device__ __forceinline__ void Multiply(uint32_t own, uint32_t other, float (&c)[kOther / 8][4]) const {
    const uint32_t own_start = Tile::Start(own, warp_row_ + lane_ % 16, lane_ / 16);
    const uint32_t other_start = Tile::Start(other, lane_ / 16 * 8 + lane_ % 8, lane_ / 8 % 2);
#pragma unroll
    for (int k = 0; k < kWidth / 16; ++k) {
      uint32_t a[4];
      LoadMatrices(a, Tile::At(own_start, 0, k));
#pragma unroll
      for (int n = 0; n < kOther / 16; ++n) {
        uint32_t b[4];
        LoadMatrices(b, Tile::At(other_start, n, k));
        Mma<Element>(c[2 * n], a, b[0], b[1]);
        Mma<Element>(c[2 * n + 1], a, b[2], b[3]);
      }
    }
  }

  // s: dot products become probabilities; ds: dP becomes dS, without the scale.
  __device__ __forceinline__ void Weights(const Cursor& cursor, int stage, float (&s)[kOther / 8][4],
                                          float (&ds)[kOther / 8][4]) const {
    const struct Run& run = work_.runs[cursor.piece.run];
    const int rows = cursor.piece.rows(work_.runs);
    const int first_column = lane_ % 4 * 2;
    if constexpr (kFirst) {
#pragma unroll
      for (int i = 0; i < kColumns; ++i) {
        const float column = kOwnsQueries ? 0.0f : LoadShared(Statistics(stage) + (kOther + ColumnOf(i)) * 4);
        ds[i / 2][i % 2] -= kOwnsQueries ? delta_[0] : column;
        ds[i / 2][2 + i % 2] -= kOwnsQueries ? delta_[1] : column;
      }
    }
    if (scoring_.transforms) Transform(cursor, run, s, ds);
    float column_lse[kOwnsQueries ? 1 : kColumns];
    if constexpr (!kOwnsQueries) {
#pragma unroll
      for (int i = 0; i < kColumns; ++i) column_lse[i] = InLog2(LoadShared(Statistics(stage) + ColumnOf(i) * 4));
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = warp_row_ + half * 8 + lane_ / 4;
      const uint32_t met = run.bands > 0
                               ? MetColumns<kColumns>(work_, run, cursor.piece.offset, rows, row, first_column)
                               : PresentColumns<kColumns>(rows, first_column);
#pragma unroll
      for (int i = 0; i < kColumns; ++i) {
        float& x = s[i / 2][half * 2 + i % 2];
        float& weight = ds[i / 2][half * 2 + i % 2];
        const bool meets = (met >> i & 1) != 0;
        x = Exp2(fmaf(meets ? x : -INFINITY, scoring_.factor, -(kOwnsQueries ? lse_[half] : column_lse[i])));
        weight = meets ? x * weight : 0.0f;
      }
    }
  }

  // The column of the other rows that a lane holds i-th.
  __device__ __forceinline__ int ColumnOf(int i) const {
    return i / 2 * 8 + lane_ % 4 * 2 + i % 2;
  }

  // Of a row that met nothing, infinity: then all its probabilities are 0.
  static __device__ __forceinline__ float InLog2(float lse) {
    return lse == -INFINITY ? INFINITY : lse * kLog2E;
  }

  // Scores in units of log2, and dP - delta times the derivative of the cap.
  __device__ __forceinline__ void Transform(const Cursor& cursor, const struct Run& run, float (&s)[kOther / 8][4],
                                            float (&ds)[kOther / 8][4]) const {
    const float slope = p_.score.slopes == nullptr ? 0.0f : p_.score.slopes[kOwnsQueries ? own_head_ : cursor.head];
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
          score -= slope * (kOwnsQueries ? Distance(p_.score, own_token, other_token)
                                         : Distance(p_.score, other_token, own_token));
        }
        x = score * kLog2E;
      }
    }
  }

  static __device__ __forceinline__ float LoadShared(uint32_t address) {
    float value;
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(value) : "r"(address) : "memory");
    return value;
  }

  // gradient += weights Y for the warp's 16 rows.
  template <typename Tile, int kTiles>
  __device__ __forceinline__ void Accumulate(uint32_t other, const float (&weights)[kOther / 8][4],
                                             float (&gradient)[kTiles][4]) const {
    const uint32_t start = Tile::Start(other, lane_ % 16, lane_ / 16);
#pragma unroll
    for (int k = 0; k < kOther / 16; ++k) {
      const uint32_t a[4] = {Element::Pack(weights[2 * k][0], weights[2 * k][1]),
                             Element::Pack(weights[2 * k][2], weights[2 * k][3]),
                             Element::Pack(weights[2 * k + 1][0], weights[2 * k + 1][1]),
                             Element::Pack(weights[2 * k + 1][2], weights[2 * k + 1][3])};
#pragma unroll
      for (int n = 0; n < kTiles / 2; ++n) {
        uint32_t b[4];
        LoadMatricesTransposed(b, Tile::At(start, k, n));
        Mma<Element>(gradient[2 * n], a, b[0], b[1]);
        Mma<Element>(gradient[2 * n + 1], a, b[2], b[3]);
      }
    }
  }

  __device__ __forceinline__ void Store() const {
    if constexpr (kFirst) {
      StoreRows(kOwnsQueries ? p_.query_gradient : p_.key_gradient, p_.score.qk_width, p_.score.scale, gradient1_);
    }
    if constexpr (kSecond) StoreRows(p_.value_gradient, p_.score.v_width, 1.0f, gradient2_);
  }

  template <int kTiles>
  __device__ __forceinline__ void StoreRows(const Matrix<float>& sums, int width, float scale,
                                            const float (&gradient)[kTiles][4]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = warp_row_ + half * 8 + lane_ / 4;
      if (row >= block_.rows) continue;
      float* const out = sums.data + (block_.first_row + row) * sums.row_stride + own_head_ * sums.head_stride;
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

  const BackwardParams& p_;
  const DeviceWork& work_;
  const Scoring scoring_;
  const uint32_t own1_, own2_, stages_;
  const RowBlock block_;
  const int own_head_, lane_, warp_row_;
  float lse_[2], delta_[2];  // of own rows, where those are queries; in units of log2, and as given
  float gradient1_[kFirst ? kQk / 8 : 1][4] = {};
  float gradient2_[kSecond ? kV / 8 : 1][4] = {};
};

template <typename Element, int kQk, int kV, Gradient kGradient>
__global__ void __launch_bounds__(kThreads) BackwardKernel(const __grid_constant__ BackwardParams params) {
  extern __shared__ __align__(128) uint8_t shared[];
  BackwardBlock<Element, kQk, kV, kGradient>(params, static_cast<uint32_t>(__cvta_generic_to_shared(shared))).Run();
}

}  // namespace tessera::cuda::sm80
