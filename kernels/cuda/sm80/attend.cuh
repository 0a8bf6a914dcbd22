// Forward attention with mma.sync and ldmatrix: four warps of 16 or 32 rows each.
#pragma once

#include <cstdint>

#include "kernels/cuda/device/attend_rows.cuh"
#include "kernels/cuda/device/poison.cuh"
#include "kernels/cuda/sm80/attend_config.h"
#include "kernels/cuda/sm80/mma.cuh"
#include "kernels/cuda/sm80/tile.cuh"

namespace tessera::cuda::sm80 {

template <typename ElementType, int kQkWidth, int kVWidth>
struct AttendMath {
  using Config = AttendConfig<kQkWidth, kVWidth>;
  using Element = ElementType;
  static constexpr int kQk = kQkWidth;
  static constexpr int kV = kVWidth;
  static constexpr int kRowTiles = Config::kRowTiles;
  static constexpr int kRows = Config::kRows;
  static constexpr int kKeys = Config::kKeys;
  using QueryTile = SizedTile<kQk, kRows>;
  using KeyTile = SizedTile<kQk, kKeys>;
  using ValueTile = SizedTile<kV, kKeys>;

  static __device__ __forceinline__ void Scores(uint32_t query_tile, uint32_t key_tile, int row, int lane,
                                                float (&s)[kRowTiles][kKeys / 8][4]) {
    const uint32_t query_start = QueryTile::Start(query_tile, row + lane % 16, lane / 16);
    const uint32_t key_start = KeyTile::Start(key_tile, lane / 16 * 8 + lane % 8, lane / 8 % 2);
#pragma unroll
    for (int k = 0; k < kQk / 16; ++k) {
      uint32_t query[kRowTiles][4];
#pragma unroll
      for (int t = 0; t < kRowTiles; ++t) LoadMatrices(query[t], QueryTile::At(query_start, t, k));
#pragma unroll
      for (int n = 0; n < kKeys / 16; ++n) {
        uint32_t key[4];
        LoadMatrices(key, KeyTile::At(key_start, n, k));
#pragma unroll
        for (int t = 0; t < kRowTiles; ++t) {
          Mma<Element>(s[t][2 * n], query[t], key[0], key[1]);
          Mma<Element>(s[t][2 * n + 1], query[t], key[2], key[3]);
        }
      }
    }
  }

  static __device__ __forceinline__ void AddValues(uint32_t value_tile, int lane,
                                                   const float (&s)[kRowTiles][kKeys / 8][4],
                                                   float (&output)[kRowTiles][kV / 8][4]) {
    const uint32_t value_start = ValueTile::Start(value_tile, lane % 16, lane / 16);
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
      uint32_t weight[kRowTiles][4];
#pragma unroll
      for (int t = 0; t < kRowTiles; ++t) PackOperand<Element>(s[t][2 * k], s[t][2 * k + 1], weight[t]);
#pragma unroll
      for (int n = 0; n < kV / 16; ++n) {
        uint32_t value[4];
        LoadMatricesTransposed(value, ValueTile::At(value_start, k, n));
#pragma unroll
        for (int t = 0; t < kRowTiles; ++t) {
          Mma<Element>(output[t][2 * n], weight[t], value[0], value[1]);
          Mma<Element>(output[t][2 * n + 1], weight[t], value[2], value[3]);
        }
      }
    }
  }
};

// Keys and values of a block arrive in the background, one piece ahead.
template <typename Element, int kQk, int kV>
class AttendBlock {
  using Math = AttendMath<Element, kQk, kV>;
  using QueryTile = typename Math::QueryTile;
  using KeyTile = typename Math::KeyTile;
  using ValueTile = typename Math::ValueTile;
  static constexpr int kTiles = Math::kRowTiles;
  static constexpr int kKeys = Math::kKeys;
  static constexpr uint32_t kKeyBytes = KeyTile::kBytes;
  static constexpr uint32_t kStageBytes = kKeyBytes + ValueTile::kBytes;

 public:
  __device__ __forceinline__ AttendBlock(const AttendParams& params, uint32_t shared)
      : p_(params),
        query_tile_(shared),
        stages_(shared + QueryTile::kBytes),
        rows_(params, static_cast<int>(threadIdx.x) / 32 * 16 * kTiles) {}

  __device__ __forceinline__ void Run() {
    const RowBlock block = rows_.block();
    const bool active = rows_.warp_row() < block.rows;
    const int end_run = block.first_run + block.runs;
    QueryTile::Load(query_tile_,
                    p_.query.data + block.first_row * p_.query.row_stride + rows_.head() * p_.query.head_stride,
                    p_.query.row_stride, block.rows, p_.score.qk_width, p_.vector_qk);
    Piece<kKeys> next{block.first_run, 0};
    LoadStage(next, 0);
    CommitCopies();
    bool more = true, poisoned = false;
    for (int stage = 0; more; stage ^= 1) {
      const Piece<kKeys> now = next;
      more = next.Next(p_.work.runs, end_run);
      WaitForAllCopies();
      __syncthreads();  // the piece is there, and nobody reads the other stage any more
      if (more) {
        LoadStage(next, stage ^ 1);
        CommitCopies();
      }
      if (now.masked(p_.work.runs)) poisoned |= TakeOutNonFinite(ValueStage(stage));
      if (active) Fold(now, stage);
    }
    if (active) rows_.Store();
    if (active && poisoned) rows_.AddNonFinite();
  }

 private:
  __device__ __forceinline__ uint32_t KeyStage(int stage) const { return stages_ + stage * kStageBytes; }
  __device__ __forceinline__ uint32_t ValueStage(int stage) const { return KeyStage(stage) + kKeyBytes; }

  __device__ __forceinline__ void LoadStage(const Piece<kKeys>& piece, int stage) const {
    const int64_t row = piece.first_row(p_.work.runs);
    const int rows = piece.rows(p_.work.runs), kv_head = rows_.kv_head();
    KeyTile::Load(KeyStage(stage), p_.key.data + row * p_.key.row_stride + kv_head * p_.key.head_stride,
                  p_.key.row_stride, rows, p_.score.qk_width, p_.vector_qk);
    ValueTile::Load(ValueStage(stage), p_.value.data + row * p_.value.row_stride + kv_head * p_.value.head_stride,
                    p_.value.row_stride, rows, p_.score.v_width, p_.vector_v);
  }

  // Values that are not finite become 0 in the tile; AddNonFinite() adds them in the end to the rows that meet them.
  // Returns whether there were any.
  static __device__ __forceinline__ bool TakeOutNonFinite(uint32_t tile) {
    constexpr int kBytes = ValueTile::kBytes;
    const int thread = static_cast<int>(threadIdx.x);
    if (__syncthreads_or(AnyNonFinite<Element, kBytes>(tile, thread, kThreads)) == 0) return false;
    ClearNonFinite<Element, kBytes>(tile, thread, kThreads);
    __syncthreads();
    return true;
  }

  __device__ __forceinline__ void Fold(const Piece<kKeys>& piece, int stage) {
    float s[kTiles][kKeys / 8][4] = {};
    float rescale[kTiles][2];
    Math::Scores(query_tile_, KeyStage(stage), rows_.warp_row(), rows_.lane(), s);
    if (rows_.transforms()) rows_.Transform(piece, s);
    rows_.Weigh(piece, s, rescale);
    rows_.Rescale(rescale);
    Math::AddValues(ValueStage(stage), rows_.lane(), s, rows_.output());
  }

  const AttendParams& p_;
  const uint32_t query_tile_, stages_;
  AttendRows<Element, kV, kTiles, kKeys> rows_;
};

template <typename Element, int kQk, int kV>
__global__ void __launch_bounds__(kThreads) AttendKernel(const __grid_constant__ AttendParams params) {
  extern __shared__ __align__(128) uint8_t shared[];
  AttendBlock<Element, kQk, kV>(params, static_cast<uint32_t>(__cvta_generic_to_shared(shared))).Run();
}

}  // namespace tessera::cuda::sm80
