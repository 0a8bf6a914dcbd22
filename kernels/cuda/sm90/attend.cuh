// Forward attention for compute capability 9.0, after Shah et al., FlashAttention-3 (arXiv 2407.08608): one warpgroup
// loads, two compute. A computing warpgroup turns the scores of one piece of keys into weights while the tensor cores
// multiply the weights of the piece before with its values.
#pragma once

#include <cstdint>

#include "kernels/cuda/device/attend_rows.cuh"
#include "kernels/cuda/device/poison.cuh"
#include "kernels/cuda/sm90/attend_config.h"
#include "kernels/cuda/sm90/panel_tile.cuh"

namespace tessera::cuda::sm90 {

// What the copy engine knows of the tensors: boxes of kRows / 2 queries, kKeys keys and kKeys values.
struct AttendMaps {
  CUtensorMap query, key, value;
};

// With kEngine one thread has the copy engine load; without it, for tensors that the engine does not take, the loading
// threads copy.
template <typename Element, int kQk, int kV, bool kEngine>
class AttendBlock {
  using Config = AttendConfig<kQk, kV>;
  static constexpr int kKeys = Config::kKeys;
  static constexpr int kStages = Config::kStages;
  static constexpr int kWarpgroupRows = 64;
  using QueryTile = PanelTile<kQk, kWarpgroupRows>;
  using KeyTile = PanelTile<kQk, kKeys>;
  using ValueTile = PanelTile<kV, kKeys>;
  // Columns of one product: of the values, as wide as they allow.
  static constexpr int kColumns = kV % 128 == 0 ? 128 : 64;
  static constexpr int kComputing = 1;  // the barrier of the computing threads

 public:
  __device__ __forceinline__ AttendBlock(const AttendParams& params, const AttendMaps& maps, uint32_t shared)
      : p_(params),
        maps_(maps),
        query_tiles_(shared),
        key_tiles_(shared + 2 * QueryTile::kBytes),
        value_tiles_(key_tiles_ + kStages * KeyTile::kBytes),
        barriers_(value_tiles_ + kStages * ValueTile::kBytes),
        block_(params.work.blocks[blockIdx.x]),
        warpgroups_((block_.rows + kWarpgroupRows - 1) / kWarpgroupRows) {}

  __device__ __forceinline__ void Run() {
    if (threadIdx.x == 0) InitBarriers();
    __syncthreads();
    const int warpgroup = static_cast<int>(threadIdx.x) / kWarpgroup - 1;
    if (warpgroup < 0) {
      GiveRegistersBack<kEngine ? Config::kEngineRegisters : Config::kCopyRegisters>();
      Load();
    } else {
      TakeRegisters<kEngine ? Config::kRegisters : Config::kRegistersBesideCopies>();
      if (warpgroup < warpgroups_) Compute(warpgroup);
    }
  }

 private:
  __device__ __forceinline__ uint32_t QueryFull() const { return barriers_; }
  __device__ __forceinline__ uint32_t KeyFull(int stage) const { return barriers_ + 8 * (1 + stage); }
  __device__ __forceinline__ uint32_t KeyEmpty(int stage) const { return KeyFull(kStages + stage); }
  __device__ __forceinline__ uint32_t ValueFull(int stage) const { return KeyFull(2 * kStages + stage); }
  __device__ __forceinline__ uint32_t ValueEmpty(int stage) const { return KeyFull(3 * kStages + stage); }

  // A tile is full when the engine's thread, or every copying thread, has arrived; empty when every computing warp has.
  __device__ __forceinline__ void InitBarriers() const {
    constexpr int kLoading = kEngine ? 1 : kWarpgroup;
    InitBarrier(QueryFull(), kLoading);
    for (int stage = 0; stage < kStages; ++stage) {
      InitBarrier(KeyFull(stage), kLoading);
      InitBarrier(ValueFull(stage), kLoading);
      InitBarrier(KeyEmpty(stage), warpgroups_ * 4);
      InitBarrier(ValueEmpty(stage), warpgroups_ * 4);
    }
    PublishBarriers();
  }

  __device__ __forceinline__ void Load() const {
    if (kEngine && threadIdx.x != 0) return;
    const int head = static_cast<int>(blockIdx.y);
    const int kv_head = (p_.score.first_query_head + head) / p_.score.group - p_.score.first_kv_head;
    LoadQueries(head);
    Place<kStages> place;
    Piece<kKeys> piece{block_.first_run, 0};
    do {
      const int row = piece.first_row(p_.work.runs), rows = piece.rows(p_.work.runs), stage = place.stage();
      WaitForPhase(KeyEmpty(stage), place.parity() ^ 1);
      LoadRows<KeyTile>(key_tiles_ + stage * KeyTile::kBytes, maps_.key, p_.key, row, kv_head, rows, p_.score.qk_width,
                        p_.vector_qk, KeyFull(stage));
      WaitForPhase(ValueEmpty(stage), place.parity() ^ 1);
      LoadRows<ValueTile>(value_tiles_ + stage * ValueTile::kBytes, maps_.value, p_.value, row, kv_head, rows,
                          p_.score.v_width, p_.vector_v, ValueFull(stage));
      ++place.number;
    } while (piece.Next(p_.work.runs, block_.first_run + block_.runs));
  }

  __device__ __forceinline__ void LoadQueries(int head) const {
    if (kEngine) ArriveAndExpect(QueryFull(), warpgroups_ * QueryTile::kBytes);
#pragma unroll 1
    for (int w = 0; w < warpgroups_; ++w) {
      const uint32_t tile = query_tiles_ + w * QueryTile::kBytes;
      const int row = block_.first_row + w * kWarpgroupRows, rows = block_.rows - w * kWarpgroupRows;
      if constexpr (kEngine) {
        QueryTile::LoadBoxes(tile, maps_.query, row, head, QueryFull());
      } else {
        QueryTile::Copy(tile, p_.query, row, head, rows, p_.score.qk_width, p_.vector_qk);
      }
    }
    if (!kEngine) FinishCopies(QueryFull());
  }

  template <typename Tile>
  static __device__ __forceinline__ void LoadRows(uint32_t tile, const CUtensorMap& map,
                                                  const Matrix<const uint16_t>& matrix, int row, int head, int rows,
                                                  int width, bool vector, uint32_t full) {
    if constexpr (kEngine) {
      ArriveAndExpect(full, Tile::kBytes);
      Tile::LoadBoxes(tile, map, row, head, full);
    } else {
      Tile::Copy(tile, matrix, row, head, rows, width, vector);
      FinishCopies(full);
    }
  }

  __device__ __forceinline__ void Compute(int warpgroup) const {
    const int warp = static_cast<int>(threadIdx.x) % kWarpgroup / 32;
    AttendRows<Element, kV, 1, kKeys> rows(p_, warpgroup * kWarpgroupRows + warp * 16);
    const uint32_t query_tile = query_tiles_ + warpgroup * QueryTile::kBytes;
    const int end_run = block_.first_run + block_.runs;
    Piece<kKeys> now{block_.first_run, 0};
    Place<kStages> place;
    float s[1][kKeys / 8][4];
    float rescale[1][2];
    uint32_t weight[kKeys / 16][4];
    bool poisoned = false;
    WaitForPhase(QueryFull(), 0);
    WaitForPhase(KeyFull(0), 0);
    Scores(query_tile, 0, s);
    WaitForProducts<0>();
    Release(KeyEmpty(0), rows.lane());
    if (rows.transforms()) rows.Transform(now, s);
    rows.Weigh(now, s, rescale);
    Pack(s, weight);
    Piece<kKeys> next = now;
    while (next.Next(p_.work.runs, end_run)) {
      const Place<kStages> ahead{place.number + 1};
      WaitForPhase(KeyFull(ahead.stage()), ahead.parity());
      Scores(query_tile, ahead.stage(), s);
      poisoned |= AwaitValues(now, place);
      AddValues(place.stage(), weight, rows.output());
      // Transforming takes the registers of the weights, and so do copies.
      if (!kEngine || rows.transforms()) {
        WaitForProducts<0>();
        if (rows.transforms()) rows.Transform(next, s);
      } else {
        WaitForProducts<1>();
      }
      Release(KeyEmpty(ahead.stage()), rows.lane());
      rows.Weigh(next, s, rescale);
      WaitForProducts<0>();
      Release(ValueEmpty(place.stage()), rows.lane());
      rows.Rescale(rescale);
      Pack(s, weight);
      now = next;
      place = ahead;
    }
    poisoned |= AwaitValues(now, place);
    AddValues(place.stage(), weight, rows.output());
    WaitForProducts<0>();
    rows.Store();
    if (poisoned) rows.AddNonFinite();
  }

  // This warp is done with a tile.
  static __device__ __forceinline__ void Release(uint32_t barrier, int lane) {
    if (lane == 0) Arrive(barrier);
  }

  // Scores of this warpgroup's rows, in flight.
  __device__ __forceinline__ void Scores(uint32_t query_tile, int stage, float (&s)[1][kKeys / 8][4]) const {
    BeginProducts();
    // Opaque to the compiler, which would keep the descriptors of all products in registers around the loop.
    asm volatile("" : "+r"(query_tile));
#pragma unroll
    for (int k = 0; k < kQk / 16; ++k) {
      Multiply<false>(s[0], QueryTile::Columns(query_tile, 0, k),
                      KeyTile::Columns(key_tiles_ + stage * KeyTile::kBytes, 0, k), k > 0, Element());
    }
    CommitProducts();
  }

  static __device__ __forceinline__ void Pack(const float (&s)[1][kKeys / 8][4], uint32_t (&weight)[kKeys / 16][4]) {
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) PackOperand<Element>(s[0][2 * k], s[0][2 * k + 1], weight[k]);
  }

  // output += weights times values, in flight.
  __device__ __forceinline__ void AddValues(int stage, const uint32_t (&weight)[kKeys / 16][4],
                                            float (&output)[1][kV / 8][4]) const {
    BeginProducts();
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
#pragma unroll
      for (int n = 0; n < kV / kColumns; ++n) {
        auto& columns = *reinterpret_cast<float(*)[kColumns / 8][4]>(&output[0][n * kColumns / 8]);
        Multiply<true>(columns, weight[k],
                       ValueTile::Rows(value_tiles_ + stage * ValueTile::kBytes, k, n * kColumns / 64), true,
                       Element());
      }
    }
    CommitProducts();
  }

  // Until the values of a piece are there. What rows with a weight of 0 must not see becomes 0: rows beyond the piece,
  // where the copy engine leaves what the tensor has there, and values of masked pieces that are not finite, which
  // AddNonFinite() adds in the end to the rows that meet them. Returns whether there were any of those.
  __device__ __forceinline__ bool AwaitValues(const Piece<kKeys>& piece, const Place<kStages>& place) const {
    WaitForPhase(ValueFull(place.stage()), place.parity());
    const bool masked = piece.masked(p_.work.runs);
    const int rows = piece.rows(p_.work.runs);
    if (!masked && rows == kKeys) return false;
    const uint32_t tile = value_tiles_ + place.stage() * ValueTile::kBytes;
    const int thread = static_cast<int>(threadIdx.x) - kWarpgroup, threads = warpgroups_ * kWarpgroup;
    if (rows < kKeys) ValueTile::ClearRows(tile, 0, rows, thread, threads);
    PublishShared();
    const bool any = masked && AnyNonFinite<Element, ValueTile::kBytes>(tile, thread, threads);
    if (!SyncThreadsOr(kComputing, threads, any)) return false;
    ClearNonFinite<Element, ValueTile::kBytes>(tile, thread, threads);
    PublishShared();
    SyncThreads(kComputing, threads);
    return true;
  }

  const AttendParams& p_;
  const AttendMaps& maps_;
  const uint32_t query_tiles_, key_tiles_, value_tiles_, barriers_;
  const RowBlock block_;
  const int warpgroups_;  // that have rows
};

template <typename Element, int kQk, int kV, bool kEngine>
__global__ void __launch_bounds__(AttendConfig<kQk, kV>::kThreads, 1)
    AttendKernelSm90(const __grid_constant__ AttendParams params, const __grid_constant__ AttendMaps maps) {
#if TESSERA_HAS_WGMMA
  extern __shared__ uint8_t shared[];
  AttendBlock<Element, kQk, kV, kEngine>(params, maps, FirstTile(shared)).Run();
#endif
}

}  // namespace tessera::cuda::sm90
