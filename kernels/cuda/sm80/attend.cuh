// Forward attention with mma.sync and ldmatrix: four warps of 16 or 32 rows each.
#pragma once

#include <cstdint>

#include "kernels/cuda/device/attend_block.cuh"
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
  static constexpr int kThreads = sm80::kThreads;
  static constexpr int kRowTiles = Config::kRowTiles;
  static constexpr int kRows = Config::kRows;
  static constexpr int kKeys = Config::kKeys;
  static constexpr int kTogether = 16 * kRowTiles;
  using QueryTile = SizedTile<kQk, kRows>;
  using KeyTile = SizedTile<kQk, kKeys>;
  using ValueTile = SizedTile<kV, kKeys>;

  static __device__ __forceinline__ void Publish() {}

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
      for (int t = 0; t < kRowTiles; ++t) {
        // Two accumulators side by side are laid out as one left operand.
        weight[t][0] = Element::Pack(s[t][2 * k][0], s[t][2 * k][1]);
        weight[t][1] = Element::Pack(s[t][2 * k][2], s[t][2 * k][3]);
        weight[t][2] = Element::Pack(s[t][2 * k + 1][0], s[t][2 * k + 1][1]);
        weight[t][3] = Element::Pack(s[t][2 * k + 1][2], s[t][2 * k + 1][3]);
      }
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

template <typename Element, int kQk, int kV>
__global__ void __launch_bounds__(kThreads) AttendKernel(const __grid_constant__ AttendParams params) {
  extern __shared__ __align__(128) uint8_t shared[];
  AttendBlock<AttendMath<Element, kQk, kV>>(params, static_cast<uint32_t>(__cvta_generic_to_shared(shared))).Run();
}

}  // namespace tessera::cuda::sm80
