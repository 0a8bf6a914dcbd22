// Attention of a few query rows over a paged cache, split over its keys, for compute capability 9.0. One warpgroup
// loads blocks of keys into a ring; the others share each block: every one scores its part of the keys and, once the
// weights of all lie in shared memory, accumulates its part of the value columns. Values of a latent cache are the
// first columns of the keys, where these lie.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/cuda/device/decode_pairs.cuh"
#include "kernels/cuda/device/poison.cuh"
#include "kernels/cuda/device/score.cuh"
#include "kernels/cuda/sm90/decode_config.h"
#include "kernels/cuda/sm90/panel_tile.cuh"

namespace tessera::cuda::sm90 {

// What the copy engine knows of the cache: boxes of `box_rows` rows of one page, which whole blocks of keys consist of.
struct DecodeMaps {
  CUtensorMap key, value;
  int box_rows;
};

// kEngine as in AttendBlock.
template <typename Element, int kQk, int kV, bool kLatent, bool kEngine>
class DecodeBlock {
  using Config = DecodeConfig<kQk, kV, kLatent>;
  static constexpr int kKeys = Config::kKeys;
  static constexpr int kStages = Config::kStages;
  static constexpr int kGroups = Config::kGroups;
  static constexpr int kGroupKeys = kKeys / kGroups;
  static constexpr int kGroupColumns = kV / kGroups;
  // Columns of one product: of the values, as wide as they allow.
  static constexpr int kColumns = kGroupColumns % 128 == 0 ? 128 : 64;
  static constexpr int kComputing = kGroups * kWarpgroup;  // threads
  static constexpr int kBarrier = 1;                       // of the computing threads
  using QueryTile = PanelTile<kQk, Config::kPairs>;
  using KeyTile = PanelTile<kQk, kKeys>;
  using ValueTile = PanelTile<kV, kKeys>;
  using WeightTile = PanelTile<kKeys, Config::kPairs>;
  using Pairs = DecodePairs<Element, Config::kPairs>;

 public:
  __device__ __forceinline__ DecodeBlock(const DecodeParams& params, const DecodeMaps& maps, uint32_t shared)
      : p_(params),
        maps_(maps),
        scoring_(params.score),
        query_tile_(shared),
        stages_(shared + QueryTile::kBytes),
        weights_(stages_ + kStages * Config::kStageBytes),
        reduce_(weights_ + WeightTile::kBytes),
        barriers_(reduce_ + Config::kReduceBytes),
        pairs_(params) {}

  __device__ __forceinline__ void Run() {
    if (pairs_.pairs() <= 0) return;
    if (threadIdx.x == 0) InitBarriers();
    __syncthreads();
    typename Pairs::Ranges ranges = pairs_.FindRanges();
    const int first = ranges.begin;
    // Boxes start at multiples of their rows; what lies before the first row that somebody sees is masked.
    if (kEngine) ranges.begin = ranges.begin / maps_.box_rows * maps_.box_rows;
    const int2 share = pairs_.template Share<kKeys>(ranges);
    if (threadIdx.x < kWarpgroup) {
      if (kGroups > 1) GiveRegistersBack<Config::kLoadingRegisters>();
      Load(share.x, share.y);
    } else {
      if (kGroups > 1) TakeRegisters<Config::kRegisters>();
      Compute(ranges, first, share.x, share.y);
    }
  }

 private:
  __device__ __forceinline__ uint32_t Full(int stage) const { return barriers_ + 8 * stage; }
  __device__ __forceinline__ uint32_t Empty(int stage) const { return Full(kStages + stage); }
  __device__ __forceinline__ uint32_t KeyStage(int stage) const { return stages_ + stage * Config::kStageBytes; }
  __device__ __forceinline__ uint32_t ValueStage(int stage) const {
    return kLatent ? KeyStage(stage) : KeyStage(stage) + KeyTile::kBytes;
  }

  // A stage is full when the engine's lane, or every copying thread, has arrived; empty when every computing warp has.
  __device__ __forceinline__ void InitBarriers() const {
    for (int stage = 0; stage < kStages; ++stage) {
      InitBarrier(Full(stage), kEngine ? 1 : kWarpgroup);
      InitBarrier(Empty(stage), kGroups * 4);
    }
    PublishBarriers();
  }

  // One warp is enough for the copy engine; its lanes look up pages side by side.
  __device__ __forceinline__ void Load(int begin, int end) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    if (kEngine && threadIdx.x >= 32) return;
    Place<kStages> place;
    for (int key = begin; key < end; key += kKeys, ++place.number) {
      const int stage = place.stage();
      WaitForPhase(Empty(stage), place.parity() ^ 1);
      if constexpr (kEngine) {
        if (lane == 0) ArriveAndExpect(Full(stage), Config::kStageBytes);
        __syncwarp();
        LoadBoxes<KeyTile>(KeyStage(stage), maps_.key, key, end, lane, Full(stage));
        if (!kLatent) LoadBoxes<ValueTile>(ValueStage(stage), maps_.value, key, end, lane, Full(stage));
      } else {
        const int warp = static_cast<int>(threadIdx.x) / 32;
        const auto key_row = [&](int i) {
          return key + i < end ? reinterpret_cast<const uint16_t*>(p_.key + pairs_.KeyOffset(key + i)) : nullptr;
        };
        KeyTile::template CopyRows<4>(KeyStage(stage), warp, lane, p_.score.qk_width, p_.vector_key, p_.key, key_row);
        if constexpr (!kLatent) {
          const auto value_row = [&](int i) {
            return key + i < end ? reinterpret_cast<const uint16_t*>(p_.value + pairs_.ValueOffset(key + i)) : nullptr;
          };
          ValueTile::template CopyRows<4>(ValueStage(stage), warp, lane, p_.score.v_width, p_.vector_value, p_.value,
                                          value_row);
        }
        FinishCopies(Full(stage));
      }
    }
  }

  // Beyond the last box that has rows, where no page may be, that box again.
  template <typename Tile>
  __device__ __forceinline__ void LoadBoxes(uint32_t tile, const CUtensorMap& map, int key, int end, int lane,
                                            uint32_t barrier) const {
    const int rows = maps_.box_rows, boxes = kKeys / rows, last = (end - 1) / rows * rows;
    for (int i = lane; i < boxes * Tile::kPanels; i += 32) {
      const int box = i % boxes, panel = i / boxes;
      const int row = min(key + box * rows, last);
      LoadBox(tile + panel * Tile::kPanelBytes + box * rows * 128, map, panel * kPanelColumns, row % p_.page_tokens,
              pairs_.kv_head(), pairs_.Page(row), barrier);
    }
  }

  // By the computing warps.
  __device__ __forceinline__ void LoadQuery(int thread) const {
    QueryTile::template CopyRows<kComputing / 32>(query_tile_, thread / 32, thread % 32, p_.score.qk_width,
                                                  p_.vector_query, p_.query.data,
                                                  [&](int pair) { return pairs_.Query(pair); });
    CommitCopies();
    WaitForAllCopies();
    PublishShared();
    SyncThreads(kBarrier, kComputing);
  }

  __device__ __forceinline__ void Compute(const typename Pairs::Ranges& ranges, int first, int begin, int end) {
    const int thread = static_cast<int>(threadIdx.x) - kWarpgroup;
    group_ = thread / kWarpgroup;
    lane_ = thread % 32;
    row_ = thread % kWarpgroup / 32 * 16 + lane_ / 4;
    LoadQuery(thread);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int pair = row_ + half * 8;
      const VisibleRows visible = pair < pairs_.pairs() ? pairs_.VisibleOf(pair) : VisibleRows{0, 0};
      begin_[half] = static_cast<int>(visible.begin);
      end_[half] = static_cast<int>(visible.end);
    }
    bool poisoned = false;
    Place<kStages> place;
    for (int key = begin; key < end; key += kKeys, ++place.number) {
      const int stage = place.stage();
      WaitForPhase(Full(stage), place.parity());
      float s[kGroupKeys / 8][4];
      Scores(stage, s);
      Mask(key, end, s);
      StoreMaxima(s);
      SyncThreads(kBarrier, kComputing);  // the maxima are there, and nobody needs the keys as such any more
      if (key < ranges.all_begin || key + kKeys > min(ranges.all_end, end)) {
        poisoned |= TakeOut(ValueStage(stage), first - key, end - key, thread);
      }
      StoreWeights(s);
      PublishShared();
      SyncThreads(kBarrier, kComputing);  // the weights are there
      AddValues(stage);
      if (lane_ == 0) Arrive(Empty(stage));
    }
    Store();
    if (poisoned) {
      SyncThreads(kBarrier, kComputing);  // all outputs are stored
      pairs_.AddNonFinite(begin, end, thread, kComputing);
    }
  }

  // All pairs times this warpgroup's keys.
  __device__ __forceinline__ void Scores(int stage, float (&s)[kGroupKeys / 8][4]) const {
    BeginProducts();
#pragma unroll
    for (int k = 0; k < kQk / 16; ++k) {
      Multiply<false>(s, QueryTile::Columns(query_tile_, 0, k),
                      KeyTile::Columns(KeyStage(stage), group_ * kGroupKeys, k), k > 0, Element());
    }
    CommitProducts();
    WaitForProducts<0>();
  }

  __device__ __forceinline__ void Mask(int key, int end, float (&s)[kGroupKeys / 8][4]) const {
#pragma unroll
    for (int n = 0; n < kGroupKeys / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = key + ColumnOf(n) + i % 2;
        float& x = s[n][i];
        if (scoring_.transforms) x = CappedScore(p_.score, x) * kLog2E;
        if (row < begin_[i / 2] || row >= min(end_[i / 2], end)) x = -INFINITY;
      }
    }
  }
  // Of the block's keys, the first of the two that this lane holds n-th.
  __device__ __forceinline__ int ColumnOf(int n) const {
    return group_ * kGroupKeys + n * 8 + lane_ % 4 * 2;
  }
  __device__ __forceinline__ uint32_t Reduced(int group, int half) const {
    return reduce_ + (group * Config::kPairs + row_ + half * 8) * 4;
  }

  __device__ __forceinline__ void StoreMaxima(const float (&s)[kGroupKeys / 8][4]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float x = -INFINITY;
#pragma unroll
      for (int n = 0; n < kGroupKeys / 8; ++n) x = fmaxf(x, fmaxf(s[n][half * 2], s[n][half * 2 + 1]));
      x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
      x = fmaxf(x, __shfl_xor_sync(~0u, x, 2));
      if (lane_ % 4 == 0) StoreShared(Reduced(group_, half), x);
    }
  }

  // What rows with a weight of 0 must not see becomes 0: rows of the block outside [first, end), and values that are
  // not finite. Returns whether there were any of those, which AddNonFinite() adds in the end to the pairs that see
  // them.
  static __device__ __forceinline__ bool TakeOut(uint32_t tile, int first, int end, int thread) {
    ValueTile::ClearRows(tile, first, end, thread, kComputing);
    const bool any = AnyNonFinite<Element, ValueTile::kBytes>(tile, thread, kComputing);
    if (!SyncThreadsOr(kBarrier, kComputing, any)) return false;
    ClearNonFinite<Element, ValueTile::kBytes>(tile, thread, kComputing);
    return true;
  }

  // Weights relative to the maxima of all warpgroups, which everything summed so far is rescaled to.
  __device__ __forceinline__ void StoreWeights(const float (&s)[kGroupKeys / 8][4]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float x = -INFINITY;
#pragma unroll
      for (int group = 0; group < kGroups; ++group) x = fmaxf(x, LoadShared(Reduced(group, half)));
      const float before = max_[half];
      max_[half] = fmaxf(before, x * scoring_.factor);
      const float top = max_[half] == -INFINITY ? 0.0f : max_[half];
      const float rescale = Exp2(before - top);
      sum_[half] *= rescale;
#pragma unroll
      for (int n = 0; n < kGroupColumns / 8; ++n) {
        output_[n][half * 2] *= rescale;
        output_[n][half * 2 + 1] *= rescale;
      }
#pragma unroll
      for (int n = 0; n < kGroupKeys / 8; ++n) {
        const float low = Exp2(fmaf(s[n][half * 2], scoring_.factor, -top));
        const float high = Exp2(fmaf(s[n][half * 2 + 1], scoring_.factor, -top));
        sum_[half] += low + high;
        const uint32_t at = WeightTile::Offset(row_ + half * 8, ColumnOf(n) / 8) + lane_ % 4 * 4;
        StoreShared(weights_ + at, Element::Pack(low, high));
      }
    }
  }

  // This warpgroup's columns of the values.
  __device__ __forceinline__ void AddValues(int stage) {
    BeginProducts();
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
#pragma unroll
      for (int n = 0; n < kGroupColumns / kColumns; ++n) {
        auto& columns = *reinterpret_cast<float(*)[kColumns / 8][4]>(&output_[n * kColumns / 8]);
        const int panel = (group_ * kGroupColumns + n * kColumns) / kPanelColumns;
        Multiply<true>(columns, WeightTile::Columns(weights_, 0, k), ValueTile::Rows(ValueStage(stage), k, panel), true,
                       Element());
      }
    }
    CommitProducts();
    WaitForProducts<0>();
  }

  // The maxima have been read: a barrier came after that.
  __device__ __forceinline__ void Store() const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = sum_[half];
      sum += __shfl_xor_sync(~0u, sum, 1);
      sum += __shfl_xor_sync(~0u, sum, 2);
      if (lane_ % 4 == 0) StoreShared(Reduced(group_, half), sum);
    }
    SyncThreads(kBarrier, kComputing);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int pair = row_ + half * 8;
      if (pair >= pairs_.pairs()) continue;
      float sum = 0;
#pragma unroll
      for (int group = 0; group < kGroups; ++group) sum += LoadShared(Reduced(group, half));
      const typename Pairs::Place place = pairs_.PlaceOf(pair);
      const bool empty = max_[half] == -INFINITY && sum == 0.0f;
      const float inverse = empty ? 0.0f : 1.0f / sum;
      if (group_ == 0 && lane_ % 4 == 0) *place.lse = empty ? -INFINITY : max_[half] * kLn2 + logf(sum);
#pragma unroll
      for (int n = 0; n < kGroupColumns / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int column = group_ * kGroupColumns + n * 8 + lane_ % 4 * 2 + i;
          if (column < p_.score.v_width) place.output[column] = empty ? 0.0f : output_[n][half * 2 + i] * inverse;
        }
      }
    }
  }

  const DecodeParams& p_;
  const DecodeMaps& maps_;
  const Scoring scoring_;
  const uint32_t query_tile_, stages_, weights_, reduce_, barriers_;
  const Pairs pairs_;
  int group_, lane_, row_;                   // of a computing thread: its warpgroup, and the first of its two pairs
  int begin_[2], end_[2];                    // what its pairs see
  float output_[kGroupColumns / 8][4] = {};  // relative to max_
  float max_[2] = {-INFINITY, -INFINITY};    // of scores in units of log2
  float sum_[2] = {};                        // of this lane's keys
};

template <typename Element, int kQk, int kV, bool kLatent, bool kEngine>
__global__ void __launch_bounds__(DecodeConfig<kQk, kV, kLatent>::kThreads, 1)
    DecodeKernelSm90(const __grid_constant__ DecodeParams params, const __grid_constant__ DecodeMaps maps) {
#if TESSERA_HAS_WGMMA
  extern __shared__ uint8_t shared[];
  DecodeBlock<Element, kQk, kV, kLatent, kEngine>(params, maps, FirstTile(shared)).Run();
#endif
}

}  // namespace tessera::cuda::sm90
