// Attention of a few query rows over a paged cache, split over its keys. Keys and values of a block arrive in the
// background, one block ahead.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/cuda/device/decode_pairs.cuh"
#include "kernels/cuda/device/decode_params.h"
#include "kernels/cuda/device/element.cuh"
#include "kernels/cuda/device/poison.cuh"
#include "kernels/cuda/device/score.cuh"
#include "kernels/cuda/sm80/decode_config.h"
#include "kernels/cuda/sm80/mma.cuh"
#include "kernels/cuda/sm80/tile.cuh"

namespace tessera::cuda::sm80 {

template <typename Element, int kQk, int kV, bool kLatent>
class DecodeTile {
  using Config = DecodeConfig<kQk, kV, kLatent>;
  static constexpr int kTiles = Config::kRowTiles;
  static constexpr int kKeys = Config::kKeys;
  static constexpr int kWarpKeys = kKeys / kWarps;
  static constexpr int kWarpColumns = kV / kWarps;
  using KeyTile = Tile<kQk>;
  // Values are the first columns of a latent cache's keys.
  using ValueTile = Tile<kLatent ? kQk : kV>;
  using WeightTile = Tile<kKeys>;
  using Pairs = DecodePairs<Element, Config::kPairs>;
  static_assert(kWarpKeys == 8 || kWarpKeys == 16);
  static_assert(kWarpColumns % 16 == 0);

 public:
  __device__ __forceinline__ DecodeTile(const DecodeParams& params, uint32_t shared)
      : p_(params),
        scoring_(params.score),
        query_tile_(shared),
        stages_(shared + Config::kPairs * KeyTile::kRowBytes),
        weights_(stages_ + 2 * Config::kStageBytes),
        reduce_(weights_ + Config::kWeightBytes),
        pairs_(params),
        lane_(static_cast<int>(threadIdx.x) % 32),
        warp_(static_cast<int>(threadIdx.x) / 32) {
#pragma unroll
    for (int i = 0; i < kTiles * 2; ++i) max_[i / 2][i % 2] = -INFINITY;
  }

  __device__ __forceinline__ void Run() {
    if (pairs_.pairs() <= 0) return;
    FindVisible();
    LoadQuery();
    const typename Pairs::Ranges ranges = pairs_.FindRanges();
    const int2 share = pairs_.template Share<kKeys>(ranges);
    const int begin = share.x, end = share.y;
    if (begin < end) LoadStage(begin, end, 0);
    CommitCopies();
    bool poisoned = false;
    int stage = 0;
    for (int key = begin; key < end; key += kKeys, stage ^= 1) {
      WaitForAllCopies();
      __syncthreads();  // the block is there; nobody reads the other stage or the weights any more
      if (key + kKeys < end) LoadStage(key + kKeys, end, stage ^ 1);
      CommitCopies();
      float s[kTiles][kWarpKeys / 8][4] = {};
      Scores(stage, s);
      Mask(key, end, s);
      const bool masked = key < ranges.all_begin || min(key + kKeys, end) > ranges.all_end;
      poisoned |= Normalise(stage, masked, s);
      AddValues(stage);
    }
    WaitForAllCopies();
    Store();
    if (poisoned) {
      __syncthreads();
      pairs_.AddNonFinite(begin, end, static_cast<int>(threadIdx.x), kThreads);
    }
  }

 private:
  __device__ __forceinline__ uint32_t KeyStage(int stage) const {
    return stages_ + stage * Config::kStageBytes;
  }
  __device__ __forceinline__ uint32_t ValueStage(int stage) const {
    return kLatent ? KeyStage(stage) : KeyStage(stage) + kKeys * KeyTile::kRowBytes;
  }
  __device__ __forceinline__ int RowOf(int t, int half) const {
    return t * 16 + half * 8 + lane_ / 4;
  }

  // What each lane's pairs see.
  __device__ __forceinline__ void FindVisible() {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const VisibleRows visible =
            RowOf(t, half) < pairs_.pairs() ? pairs_.VisibleOf(RowOf(t, half)) : VisibleRows{0, 0};
        begin_[t][half] = static_cast<int>(visible.begin);
        end_[t][half] = static_cast<int>(visible.end);
      }
    }
  }

  __device__ __forceinline__ void LoadQuery() const {
    const auto row = [&](int i) { return pairs_.Query(warp_ + i * kWarps); };
    KeyTile::template LoadRows<Config::kPairs / kWarps>(query_tile_, warp_, p_.score.qk_width, p_.vector_query, lane_,
                                                        p_.query.data, row);
  }

  // Rows from `end` on become zeros. Each warp copies whole rows, whose pages its lanes look up side by side.
  __device__ __forceinline__ void LoadStage(int key, int end, int stage) const {
    const int own = min(key + warp_ + lane_ % kWarpKeys * kWarps, end - 1);
    const int64_t key_offset = pairs_.KeyOffset(own), value_offset = pairs_.ValueOffset(own);
    const auto row = [&](const std::byte* base, int64_t offset) {
      return [=, this](int i) -> const uint16_t* {
        const int64_t at = __shfl_sync(~0u, offset, i);
        return key + warp_ + i * kWarps < end ? reinterpret_cast<const uint16_t*>(base + at) : nullptr;
      };
    };
    KeyTile::template LoadRows<kWarpKeys>(KeyStage(stage), warp_, p_.score.qk_width, p_.vector_key, lane_, p_.key,
                                          row(p_.key, key_offset));
    if constexpr (!kLatent) {
      ValueTile::template LoadRows<kWarpKeys>(ValueStage(stage), warp_, p_.score.v_width, p_.vector_value, lane_,
                                              p_.value, row(p_.value, value_offset));
    }
  }

  // All pairs times this warp's keys.
  __device__ __forceinline__ void Scores(int stage, float (&s)[kTiles][kWarpKeys / 8][4]) const {
    const uint32_t query_start = KeyTile::Start(query_tile_, lane_ % 16, lane_ / 16);
    const int first = warp_ * kWarpKeys;
    const uint32_t key_start = kWarpKeys == 16
                                   ? KeyTile::Start(KeyStage(stage), first + lane_ / 16 * 8 + lane_ % 8, lane_ / 8 % 2)
                                   : KeyTile::Start(KeyStage(stage), first + lane_ % 8, lane_ / 8 % 2);
#pragma unroll
    for (int k = 0; k < kQk / 16; ++k) {
      uint32_t key[4];
      if constexpr (kWarpKeys == 16) {
        LoadMatrices(key, KeyTile::At(key_start, 0, k));
      } else {
        LoadTwoMatrices(key[0], key[1], KeyTile::At(key_start, 0, k));
      }
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        uint32_t query[4];
        LoadMatrices(query, KeyTile::At(query_start, t, k));
        Mma<Element>(s[t][0], query, key[0], key[1]);
        if constexpr (kWarpKeys == 16) Mma<Element>(s[t][1], query, key[2], key[3]);
      }
    }
  }

  __device__ __forceinline__ void Mask(int key, int end, float (&s)[kTiles][kWarpKeys / 8][4]) const {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int n = 0; n < kWarpKeys / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int row = key + warp_ * kWarpKeys + n * 8 + lane_ % 4 * 2 + i % 2;
          float& x = s[t][n][i];
          if (scoring_.transforms) x = CappedScore(p_.score, x) * kLog2E;
          if (row < begin_[t][i / 2] || row >= min(end_[t][i / 2], end)) x = -INFINITY;
        }
      }
    }
  }

  // The warps agree on the maxima and leave the block's weights in shared memory. Returns whether values were cleared:
  // those of a block that some pair sees in part, and that are not finite.
  __device__ __forceinline__ bool Normalise(int stage, bool masked, float (&s)[kTiles][kWarpKeys / 8][4]) {
    float top[kTiles][2];
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float x = -INFINITY;
#pragma unroll
        for (int n = 0; n < kWarpKeys / 8; ++n) x = fmaxf(x, fmaxf(s[t][n][half * 2], s[t][n][half * 2 + 1]));
        x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
        x = fmaxf(x, __shfl_xor_sync(~0u, x, 2));
        if (lane_ % 4 == 0) StoreShared(reduce_ + (warp_ * Config::kPairs + RowOf(t, half)) * 4, x);
      }
    }
    constexpr int kValueBytes = kKeys * ValueTile::kRowBytes;
    const int thread = static_cast<int>(threadIdx.x);
    bool poisoned = false;
    if (masked) {
      poisoned = __syncthreads_or(AnyNonFinite<Element, kValueBytes>(ValueStage(stage), thread, kThreads)) != 0;
      if (poisoned) ClearNonFinite<Element, kValueBytes>(ValueStage(stage), thread, kThreads);
    } else {
      __syncthreads();
    }
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = RowOf(t, half);
        float x = -INFINITY;
#pragma unroll
        for (int w = 0; w < kWarps; ++w) x = fmaxf(x, LoadShared(reduce_ + (w * Config::kPairs + row) * 4));
        const float before = max_[t][half];
        const float max = fmaxf(before, x * scoring_.factor);
        max_[t][half] = max;
        top[t][half] = max == -INFINITY ? 0.0f : max;
        const float rescale = Exp2(before - top[t][half]);
        sum_[t][half] *= rescale;
#pragma unroll
        for (int n = 0; n < kWarpColumns / 8; ++n) {
          output_[t][n][half * 2] *= rescale;
          output_[t][n][half * 2 + 1] *= rescale;
        }
#pragma unroll
        for (int n = 0; n < kWarpKeys / 8; ++n) {
          const float low = Exp2(fmaf(s[t][n][half * 2], scoring_.factor, -top[t][half]));
          const float high = Exp2(fmaf(s[t][n][half * 2 + 1], scoring_.factor, -top[t][half]));
          sum_[t][half] += low + high;
          const int column = warp_ * kWarpKeys + n * 8;
          StoreShared(weights_ + WeightTile::Offset(row, column / 8) + lane_ % 4 * 4, Element::Pack(low, high));
        }
      }
    }
    __syncthreads();
    return poisoned;
  }

  // This warp's columns of the values.
  __device__ __forceinline__ void AddValues(int stage) {
    const uint32_t weight_start = WeightTile::Start(weights_, lane_ % 16, lane_ / 16);
    const uint32_t value_start = ValueTile::Start(ValueStage(stage), lane_ % 16, lane_ / 16);
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
      uint32_t weight[kTiles][4];
#pragma unroll
      for (int t = 0; t < kTiles; ++t) LoadMatrices(weight[t], WeightTile::At(weight_start, t, k));
#pragma unroll
      for (int n = 0; n < kWarpColumns / 16; ++n) {
        uint32_t value[4];
        LoadMatricesTransposed(value, ValueTile::At(value_start, k, warp_ * (kWarpColumns / 16) + n));
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
          Mma<Element>(output_[t][2 * n], weight[t], value[0], value[1]);
          Mma<Element>(output_[t][2 * n + 1], weight[t], value[2], value[3]);
        }
      }
    }
  }

  __device__ __forceinline__ void Store() {
    __syncthreads();  // the maxima have been read
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float sum = sum_[t][half];
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        if (lane_ % 4 == 0) StoreShared(reduce_ + (warp_ * Config::kPairs + RowOf(t, half)) * 4, sum);
      }
    }
    __syncthreads();
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = RowOf(t, half);
        if (row >= pairs_.pairs()) continue;
        float sum = 0;
#pragma unroll
        for (int w = 0; w < kWarps; ++w) sum += LoadShared(reduce_ + (w * Config::kPairs + row) * 4);
        const typename Pairs::Place place = pairs_.PlaceOf(row);
        const bool empty = max_[t][half] == -INFINITY && sum == 0.0f;
        const float inverse = empty ? 0.0f : 1.0f / sum;
        if (warp_ == 0 && lane_ % 4 == 0) *place.lse = empty ? -INFINITY : max_[t][half] * kLn2 + logf(sum);
#pragma unroll
        for (int n = 0; n < kWarpColumns / 8; ++n) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const int column = warp_ * kWarpColumns + n * 8 + lane_ % 4 * 2 + i;
            if (column < p_.score.v_width) {
              place.output[column] = empty ? 0.0f : output_[t][n][half * 2 + i] * inverse;
            }
          }
        }
      }
    }
  }

  const DecodeParams& p_;
  const Scoring scoring_;
  const uint32_t query_tile_, stages_, weights_, reduce_;
  const Pairs pairs_;
  const int lane_, warp_;
  int begin_[kTiles][2], end_[kTiles][2];           // what this lane's pairs see
  float output_[kTiles][kWarpColumns / 8][4] = {};  // relative to max_
  float max_[kTiles][2];                            // of scores in units of log2
  float sum_[kTiles][2] = {};                       // of this lane's keys
};

template <typename Element, int kQk, int kV, bool kLatent>
__global__ void __launch_bounds__(kThreads, 1) DecodeKernel(const __grid_constant__ DecodeParams params) {
  extern __shared__ __align__(128) uint8_t shared[];
  DecodeTile<Element, kQk, kV, kLatent>(params, static_cast<uint32_t>(__cvta_generic_to_shared(shared))).Run();
}

}  // namespace tessera::cuda::sm80
