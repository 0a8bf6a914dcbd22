// Gradients of attention for compute capability 9.0: the two passes of kernels/cuda/sm80/backward.cuh, whose notation
// this uses, without atomic additions. One warpgroup loads the rows that stream by, two compute 64 own rows each.
#pragma once

#include <cstdint>

#include "kernels/cuda/device/gradient_rows.cuh"
#include "kernels/cuda/device/poison.cuh"
#include "kernels/cuda/sm90/backward_config.h"
#include "kernels/cuda/sm90/panel_tile.cuh"

namespace tessera::cuda::sm90 {

// What the copy engine knows of X1, X2 (boxes of 64 rows) and Y1, Y2 (boxes of kOtherRows).
struct BackwardMaps {
  CUtensorMap own1, own2, other1, other2;
};

// kEngine as in AttendBlock.
template <typename Element, int kQk, int kV, Gradient kGradient, bool kEngine>
class BackwardBlock {
  using Config = BackwardConfig<kQk, kV>;
  static constexpr bool kQueries = kOwnsQueries<kGradient>;
  static constexpr bool kFirst = cuda::kFirst<kGradient>;
  static constexpr bool kSecond = cuda::kSecond<kGradient>;
  static constexpr int kOther = Config::kOtherRows;
  static constexpr int kStages = Config::kStages;
  static constexpr int kWarpgroupRows = 64;
  static constexpr int kLoading = kEngine ? 32 : kWarpgroup;  // threads
  static constexpr int kBarrier = 1;                          // of the computing threads
  using Own1 = PanelTile<kQk, kWarpgroupRows>;
  using Own2 = PanelTile<kV, kWarpgroupRows>;
  using Other1 = PanelTile<kQk, kOther>;
  using Other2 = PanelTile<kV, kOther>;
  using Cursor = GradientCursor<kGradient, kOther>;
  using Rows = GradientRows<kGradient, kOther>;
  // What the computing threads sum up.
  struct Sums {
    float first[kFirst ? kQk / 8 : 1][4] = {};
    float second[kSecond ? kV / 8 : 1][4] = {};
  };

 public:
  __device__ __forceinline__ BackwardBlock(const BackwardParams& params, const BackwardMaps& maps, uint32_t shared)
      : p_(params),
        maps_(maps),
        work_(WorkOf<kGradient>(params)),
        own1_(shared),
        own2_(own1_ + 2 * Own1::kBytes),
        stages_(own2_ + 2 * Own2::kBytes),
        statistics_(stages_ + kStages * Config::kStageBytes),
        barriers_(statistics_ + kStages * Config::kStatisticsBytes),
        block_(work_.blocks[blockIdx.x]),
        warpgroups_((block_.rows + kWarpgroupRows - 1) / kWarpgroupRows) {}

  __device__ __forceinline__ void Run() {
    const Cursor begin(p_, block_);
    const int end_head = Cursor::EndHead(p_, begin.head);
    if (begin.head >= end_head) return;  // no query head of this call reads these keys
    if (threadIdx.x == 0) InitBarriers();
    __syncthreads();
    const int warpgroup = static_cast<int>(threadIdx.x) / kWarpgroup - 1;
    if (warpgroup < 0) {
      GiveRegistersBack<Config::kLoadingRegisters>();
      if (threadIdx.x < kLoading) Load(begin, end_head);
    } else {
      TakeRegisters<Config::kRegisters>();
      if (warpgroup < warpgroups_) Compute(begin, end_head, warpgroup);
    }
  }

 private:
  __device__ __forceinline__ uint32_t OwnFull() const { return barriers_; }
  __device__ __forceinline__ uint32_t Full(int stage) const { return barriers_ + 8 * (1 + stage); }
  __device__ __forceinline__ uint32_t Empty(int stage) const { return Full(kStages + stage); }
  __device__ __forceinline__ uint32_t OtherTile1(int stage) const { return stages_ + stage * Config::kStageBytes; }
  __device__ __forceinline__ uint32_t OtherTile2(int stage) const { return OtherTile1(stage) + Other1::kBytes; }
  __device__ __forceinline__ uint32_t Statistics(int stage) const {
    return statistics_ + stage * Config::kStatisticsBytes;
  }

  // A stage is full when every loading thread has arrived, and what the engine was asked for is there; empty when every
  // computing warp has arrived.
  __device__ __forceinline__ void InitBarriers() const {
    InitBarrier(OwnFull(), kLoading);
    for (int stage = 0; stage < kStages; ++stage) {
      InitBarrier(Full(stage), kLoading);
      InitBarrier(Empty(stage), warpgroups_ * 4);
    }
    PublishBarriers();
  }

  __device__ __forceinline__ void Load(Cursor cursor, int end_head) const {
    const int own_head = static_cast<int>(blockIdx.y);
#pragma unroll 1
    for (int w = 0; w < warpgroups_; ++w) {
      const int row = block_.first_row + w * kWarpgroupRows, rows = block_.rows - w * kWarpgroupRows;
      LoadTile<Own1>(own1_ + w * Own1::kBytes, maps_.own1, kQueries ? p_.query : p_.key, row, own_head, rows,
                     p_.score.qk_width, p_.vector_qk, OwnFull());
      if constexpr (kFirst) {
        LoadTile<Own2>(own2_ + w * Own2::kBytes, maps_.own2, kQueries ? p_.output_gradient : p_.value, row, own_head,
                       rows, p_.score.v_width, p_.vector_v, OwnFull());
      }
    }
    Finish(OwnFull());
    Place<kStages> place;
    do {
      const int row = cursor.piece.first_row(work_.runs), rows = cursor.piece.rows(work_.runs), stage = place.stage();
      WaitForPhase(Empty(stage), place.parity() ^ 1);
      LoadTile<Other1>(OtherTile1(stage), maps_.other1, kQueries ? p_.key : p_.query, row, cursor.head, rows,
                       p_.score.qk_width, p_.vector_qk, Full(stage));
      LoadTile<Other2>(OtherTile2(stage), maps_.other2, kQueries ? p_.value : p_.output_gradient, row, cursor.head,
                       rows, p_.score.v_width, p_.vector_v, Full(stage));
      if constexpr (!kQueries) LoadStatistics(row, rows, cursor.head, stage);
      Finish(Full(stage));
      ++place.number;
    } while (cursor.Next(work_.runs, block_, end_head));
  }

  template <typename Tile>
  static __device__ __forceinline__ void LoadTile(uint32_t tile, const CUtensorMap& map,
                                                  const Matrix<const uint16_t>& matrix, int row, int head, int rows,
                                                  int width, bool vector, uint32_t full) {
    if constexpr (!kEngine) {
      Tile::Copy(tile, matrix, row, head, rows, width, vector);
    } else if (threadIdx.x == 0) {
      ExpectBytes(full, Tile::kBytes);
      Tile::LoadBoxes(tile, map, row, head, full);
    }
  }

  // This thread has nothing more to bring. The tensor cores read what threads copied, but not the statistics.
  static __device__ __forceinline__ void Finish(uint32_t full) {
    if constexpr (kEngine) {
      CommitCopies();
      WaitForAllCopies();
      Arrive(full);
    } else {
      FinishCopies(full);
    }
  }

  // LSE, then delta, of query rows; 0 beyond them.
  __device__ __forceinline__ void LoadStatistics(int row, int rows, int head, int stage) const {
    for (int i = static_cast<int>(threadIdx.x); i < 2 * kOther; i += kLoading) {
      const Matrix<const float>& from = i < kOther ? p_.lse : p_.delta;
      const bool inside = i % kOther < rows;
      const int64_t source = inside ? row + i % kOther : row;
      CopyWordAsync(Statistics(stage) + i * 4, from.data + source * from.row_stride + head * from.head_stride,
                    inside ? 4 : 0);
    }
  }

  __device__ __forceinline__ void Compute(Cursor cursor, int end_head, int warpgroup) const {
    const int warp = static_cast<int>(threadIdx.x) % kWarpgroup / 32, lane = static_cast<int>(threadIdx.x) % 32;
    const uint32_t own1 = own1_ + warpgroup * Own1::kBytes, own2 = own2_ + warpgroup * Own2::kBytes;
    Rows rows(p_, warpgroup * kWarpgroupRows + warp * 16);
    if constexpr (kQueries) rows.LoadOwnStatistics(block_);
    Sums sums;
    Place<kStages> place;
    WaitForPhase(OwnFull(), 0);
    do {
      const int stage = place.stage();
      float s[kOther / 8][4], ds[kOther / 8][4];
      uint32_t met[2];
      WaitForPhase(Full(stage), place.parity());
      Products<Own1, Other1, kQk>(own1, OtherTile1(stage), s);
      if constexpr (kFirst) Products<Own2, Other2, kV>(own2, OtherTile2(stage), ds);
      if (rows.transforms()) {
        WaitForProducts<0>();
        if constexpr (kFirst) rows.SubtractDelta(Statistics(stage), ds);
        rows.Transform(cursor, s, ds);
        rows.Probabilities(cursor, Statistics(stage), s, met);
      } else {
        WaitForProducts<kFirst ? 1 : 0>();
        rows.Probabilities(cursor, Statistics(stage), s, met);
        WaitForProducts<0>();
        if constexpr (kFirst) rows.SubtractDelta(Statistics(stage), ds);
      }
      if constexpr (kFirst) rows.Weigh(s, met, ds);
      TakeOut(cursor.piece, stage);
      BeginProducts();
      if constexpr (kFirst) Accumulate<Other1, kQk>(OtherTile1(stage), ds, sums.first);
      if constexpr (kSecond) Accumulate<Other2, kV>(OtherTile2(stage), s, sums.second);
      CommitProducts();
      WaitForProducts<0>();
      if (lane == 0) Arrive(Empty(stage));
      ++place.number;
    } while (cursor.Next(work_.runs, block_, end_head));
    if constexpr (kFirst) {
      rows.Store(block_, kQueries ? p_.query_gradient : p_.key_gradient, p_.score.qk_width, p_.score.scale, sums.first);
    }
    if constexpr (kSecond) rows.Store(block_, p_.value_gradient, p_.score.v_width, 1.0f, sums.second);
  }

  // c = X Y^T for this warpgroup's rows, in flight as a group.
  template <typename Own, typename Other, int kWidth>
  static __device__ __forceinline__ void Products(uint32_t own, uint32_t other, float (&c)[kOther / 8][4]) {
    // Opaque to the compiler, which would keep the descriptors of all products in registers around the loop.
    asm volatile("" : "+r"(own));
    BeginProducts();
#pragma unroll
    for (int k = 0; k < kWidth / 16; ++k) {
      Multiply<false>(c, Own::Columns(own, 0, k), Other::Columns(other, 0, k), k > 0, Element());
    }
    CommitProducts();
  }

  // sum += weights Y for this warpgroup's rows, in flight.
  template <typename Other, int kWidth>
  static __device__ __forceinline__ void Accumulate(uint32_t other, const float (&weights)[kOther / 8][4],
                                                    float (&sum)[kWidth / 8][4]) {
    constexpr int kColumns = kWidth % 128 == 0 ? 128 : 64;  // of one product
#pragma unroll
    for (int k = 0; k < kOther / 16; ++k) {
      uint32_t a[4];
      PackOperand<Element>(weights[2 * k], weights[2 * k + 1], a);
#pragma unroll
      for (int n = 0; n < kWidth / kColumns; ++n) {
        auto& columns = *reinterpret_cast<float(*)[kColumns / 8][4]>(&sum[n * kColumns / 8]);
        Multiply<true>(columns, a, Other::Rows(other, k, n * kColumns / kPanelColumns), true, Element());
      }
    }
  }

  // What rows with a weight of 0 must not see becomes 0, now that S and dP, from which the rows that meet it get it,
  // are there: rows beyond the piece, where the copy engine leaves what the tensor has there, and in masked pieces
  // whatever is not finite.
  __device__ __forceinline__ void TakeOut(const Piece<kOther>& piece, int stage) const {
    const bool masked = piece.masked(work_.runs);
    const int rows = piece.rows(work_.runs);
    if (!masked && rows == kOther) return;
    const int thread = static_cast<int>(threadIdx.x) - kWarpgroup, threads = warpgroups_ * kWarpgroup;
    const uint32_t tile1 = OtherTile1(stage), tile2 = OtherTile2(stage);
    bool any = false;
    SyncThreads(kBarrier, threads);  // everybody has S and dP
    if constexpr (kFirst) Other1::ClearRows(tile1, 0, rows, thread, threads);
    if constexpr (kSecond) Other2::ClearRows(tile2, 0, rows, thread, threads);
    if (masked) {
      if constexpr (kFirst) any |= AnyNonFinite<Element, Other1::kBytes>(tile1, thread, threads);
      if constexpr (kSecond) any |= AnyNonFinite<Element, Other2::kBytes>(tile2, thread, threads);
    }
    PublishShared();
    if (!SyncThreadsOr(kBarrier, threads, any)) return;
    if constexpr (kFirst) ClearNonFinite<Element, Other1::kBytes>(tile1, thread, threads);
    if constexpr (kSecond) ClearNonFinite<Element, Other2::kBytes>(tile2, thread, threads);
    PublishShared();
    SyncThreads(kBarrier, threads);
  }

  const BackwardParams& p_;
  const BackwardMaps& maps_;
  const DeviceWork& work_;
  const uint32_t own1_, own2_, stages_, statistics_, barriers_;
  const RowBlock block_;
  const int warpgroups_;  // that have rows
};

template <typename Element, int kQk, int kV, Gradient kGradient, bool kEngine>
__global__ void __launch_bounds__(BackwardConfig<kQk, kV>::kThreads, 1)
    BackwardKernelSm90(const __grid_constant__ BackwardParams params, const __grid_constant__ BackwardMaps maps) {
#if TESSERA_HAS_WGMMA
  extern __shared__ uint8_t shared[];
  BackwardBlock<Element, kQk, kV, kGradient, kEngine>(params, maps, FirstTile(shared)).Run();
#endif
}

}  // namespace tessera::cuda::sm90
