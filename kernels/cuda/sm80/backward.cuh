// Gradients of attention without atomic additions: a thread block owns rows of one side, streams the rows of the other
// side that they meet, recomputes the probabilities and adds to its own rows' gradients alone. Run once over blocks of
// query rows and once over blocks of key rows, so seven matrix products instead of the five that shared accumulators
// allow, and the same bits every time.
//
// Both passes are one algorithm. With own rows X1, X2 and other rows Y1, Y2 (queries and output gradients on one side,
// keys and values on the other):
//   S = X1 Y1^T,  dP = X2 Y2^T,  P = exp(S - LSE),  dS = P (dP - delta);  dX1 += dS Y1;  keys also: dX2 += P Y2.
#pragma once

#include <cstdint>

#include "kernels/cuda/device/gradient_rows.cuh"
#include "kernels/cuda/device/poison.cuh"
#include "kernels/cuda/sm80/backward_config.h"
#include "kernels/cuda/sm80/mma.cuh"
#include "kernels/cuda/sm80/tile.cuh"

namespace tessera::cuda::sm80 {

template <typename Element, int kQk, int kV, Gradient kGradient>
class BackwardBlock {
  using Config = BackwardConfig<kQk, kV>;
  static constexpr bool kQueries = kOwnsQueries<kGradient>;
  static constexpr bool kFirst = cuda::kFirst<kGradient>;
  static constexpr bool kSecond = cuda::kSecond<kGradient>;
  static constexpr int kOther = Config::kOtherRows;
  using Tile1 = Tile<kQk>;
  using Tile2 = Tile<kV>;
  static constexpr uint32_t kOwn1Bytes = Config::kOwnRows * Tile1::kRowBytes;
  static constexpr uint32_t kOwn2Bytes = Config::kOwnRows * Tile2::kRowBytes;
  static constexpr uint32_t kOther1Bytes = kOther * Tile1::kRowBytes;
  static constexpr uint32_t kOther2Bytes = kOther * Tile2::kRowBytes;

  using Cursor = GradientCursor<kGradient, kOther>;

 public:
  __device__ __forceinline__ BackwardBlock(const BackwardParams& params, uint32_t shared)
      : p_(params),
        work_(WorkOf<kGradient>(params)),
        own1_(shared),
        own2_(shared + kOwn1Bytes),
        stages_(shared + kOwn1Bytes + kOwn2Bytes),
        block_(work_.blocks[blockIdx.x]),
        own_head_(static_cast<int>(blockIdx.y)),
        lane_(static_cast<int>(threadIdx.x) % 32),
        warp_row_(static_cast<int>(threadIdx.x) / 32 * 16),
        rows_(params, warp_row_) {}

  __device__ __forceinline__ void Run() {
    Cursor next(p_, block_);
    const int end_head = Cursor::EndHead(p_, next.head);
    if (next.head >= end_head) return;  // no query head of this call reads these keys
    LoadOwn();
    LoadStage(next, 0);
    CommitCopies();
    const bool active = warp_row_ < block_.rows;
    if constexpr (kQueries) rows_.LoadOwnStatistics(block_);
    bool more = true;
    for (int stage = 0; more; stage ^= 1) {
      const Cursor now = next;
      more = next.Next(work_.runs, block_, end_head);
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

  template <typename Tile, int kRows>
  __device__ __forceinline__ void Load(uint32_t tile, const Matrix<const uint16_t>& matrix, int64_t row, int head,
                                       int rows, int width, bool vector) const {
    Tile::template Load<kRows>(tile, matrix.data + row * matrix.row_stride + head * matrix.head_stride,
                               matrix.row_stride, rows, width, vector);
  }

  __device__ __forceinline__ void LoadOwn() const {
    Load<Tile1, Config::kOwnRows>(own1_, kQueries ? p_.query : p_.key, block_.first_row, own_head_, block_.rows,
                                  p_.score.qk_width, p_.vector_qk);
    if constexpr (kFirst) {
      Load<Tile2, Config::kOwnRows>(own2_, kQueries ? p_.output_gradient : p_.value, block_.first_row, own_head_,
                                    block_.rows, p_.score.v_width, p_.vector_v);
    }
  }

  __device__ __forceinline__ void LoadStage(const Cursor& cursor, int stage) const {
    const int64_t row = cursor.piece.first_row(work_.runs);
    const int rows = cursor.piece.rows(work_.runs);
    Load<Tile1, kOther>(Other1(stage), kQueries ? p_.key : p_.query, row, cursor.head, rows, p_.score.qk_width,
                        p_.vector_qk);
    Load<Tile2, kOther>(Other2(stage), kQueries ? p_.value : p_.output_gradient, row, cursor.head, rows,
                        p_.score.v_width, p_.vector_v);
    if constexpr (!kQueries) {
      for (int i = static_cast<int>(threadIdx.x); i < 2 * kOther; i += kThreads) {
        const Matrix<const float>& from = i < kOther ? p_.lse : p_.delta;
        const bool inside = i % kOther < rows;
        const int64_t source = inside ? row + i % kOther : row;
        CopyWordAsync(Statistics(stage) + i * 4, from.data + source * from.row_stride + cursor.head * from.head_stride,
                      inside ? 4 : 0);
      }
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
    uint32_t met[2];
    if constexpr (kFirst) rows_.SubtractDelta(Statistics(stage), ds);
    if (rows_.transforms()) rows_.Transform(cursor, s, ds);
    rows_.Probabilities(cursor, Statistics(stage), s, met);
    if constexpr (kFirst) rows_.Weigh(s, met, ds);
  }

  // gradient += weights Y for the warp's 16 rows.
  template <typename Tile, int kTiles>
  __device__ __forceinline__ void Accumulate(uint32_t other, const float (&weights)[kOther / 8][4],
                                             float (&gradient)[kTiles][4]) const {
    const uint32_t start = Tile::Start(other, lane_ % 16, lane_ / 16);
#pragma unroll
    for (int k = 0; k < kOther / 16; ++k) {
      uint32_t a[4];
      PackOperand<Element>(weights[2 * k], weights[2 * k + 1], a);
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
      rows_.Store(block_, kQueries ? p_.query_gradient : p_.key_gradient, p_.score.qk_width, p_.score.scale,
                  gradient1_);
    }
    if constexpr (kSecond) rows_.Store(block_, p_.value_gradient, p_.score.v_width, 1.0f, gradient2_);
  }

  const BackwardParams& p_;
  const DeviceWork& work_;
  const uint32_t own1_, own2_, stages_;
  const RowBlock block_;
  const int own_head_, lane_, warp_row_;
  GradientRows<kGradient, kOther> rows_;
  float gradient1_[kFirst ? kQk / 8 : 1][4] = {};
  float gradient2_[kSecond ? kV / 8 : 1][4] = {};
};

template <typename Element, int kQk, int kV, Gradient kGradient>
__global__ void __launch_bounds__(kThreads) BackwardKernel(const __grid_constant__ BackwardParams params) {
  extern __shared__ __align__(128) uint8_t shared[];
  BackwardBlock<Element, kQk, kV, kGradient>(params, static_cast<uint32_t>(__cvta_generic_to_shared(shared))).Run();
}

}  // namespace tessera::cuda::sm80
