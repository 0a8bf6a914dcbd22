// Forward attention with wgmma: two warpgroups of 64 rows each. Products read keys and values where the copies leave
// them, in panels of 64 columns with the hardware's 128-byte swizzle.
#pragma once

#include <cstdint>

#include "kernels/cuda/device/attend_block.cuh"
#include "kernels/cuda/sm90/attend_config.h"
#include "kernels/cuda/sm90/wgmma.cuh"

namespace tessera::cuda::sm90 {

// kRows rows as panels of 64 columns: rows of 128 bytes, whose 16-byte pieces are permuted within groups of eight rows.
template <int kWidth, int kRows, int kThreads>
struct PanelTile {
  static constexpr int kBytes = kRows * kWidth * 2;
  static constexpr uint32_t kPanelBytes = kRows * 128;
  static constexpr uint32_t kGroupBytes = 8 * 128;

  static __device__ __forceinline__ uint32_t Offset(int row, int piece) {
    return piece / 8 * kPanelBytes + row * 128 + ((piece ^ row) & 7) * 16;
  }
  static __device__ __forceinline__ void Load(uint32_t tile, const uint16_t* global, int64_t row_stride, int rows,
                                              int width, bool vector) {
    LoadPieces<kRows, kWidth / 8, kThreads>(tile, global, row_stride, rows, width, vector, Offset);
  }
  // Rows from `row` on, 16 columns from 16 * columns16 on, summed over columns.
  static __device__ __forceinline__ uint64_t Columns(uint32_t tile, int row, int columns16) {
    return Descriptor(tile + columns16 / 4 * kPanelBytes + row * 128 + columns16 % 4 * 32, 16, kGroupBytes);
  }
  // 16 rows from 16 * rows16 on, columns from 64 * panel on, summed over rows.
  static __device__ __forceinline__ uint64_t Rows(uint32_t tile, int rows16, int panel) {
    return Descriptor(tile + panel * kPanelBytes + rows16 * 2 * kGroupBytes, kPanelBytes, kGroupBytes);
  }
};

template <typename ElementType, int kQkWidth, int kVWidth>
struct AttendMath {
  using Config = AttendConfig<kQkWidth, kVWidth>;
  using Element = ElementType;
  static constexpr int kQk = kQkWidth;
  static constexpr int kV = kVWidth;
  static constexpr int kThreads = Config::kThreads;
  static constexpr int kRowTiles = 1;
  static constexpr int kRows = Config::kRows;
  static constexpr int kKeys = Config::kKeys;
  static constexpr int kTogether = 64;  // a warpgroup
  using QueryTile = PanelTile<kQk, kRows, kThreads>;
  using KeyTile = PanelTile<kQk, kKeys, kThreads>;
  using ValueTile = PanelTile<kV, kKeys, kThreads>;
  // Columns of one product: of the values, as wide as they allow.
  static constexpr int kColumns = kV % 128 == 0 ? 128 : 64;

  static __device__ __forceinline__ void Publish() { PublishShared(); }

  static __device__ __forceinline__ void Scores(uint32_t query_tile, uint32_t key_tile, int row, int,
                                                float (&s)[1][kKeys / 8][4]) {
    BeginProducts();
#pragma unroll
    for (int k = 0; k < kQk / 16; ++k) {
      Multiply(s[0], QueryTile::Columns(query_tile, row / 64 * 64, k), KeyTile::Columns(key_tile, 0, k), Element());
    }
    WaitForProducts();
  }

  static __device__ __forceinline__ void AddValues(uint32_t value_tile, int, const float (&s)[1][kKeys / 8][4],
                                                   float (&output)[1][kV / 8][4]) {
    uint32_t weight[kKeys / 16][4];
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        weight[k][i] = Element::Pack(s[0][2 * k + i / 2][i % 2 * 2], s[0][2 * k + i / 2][i % 2 * 2 + 1]);
      }
    }
    BeginProducts();
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
#pragma unroll
      for (int n = 0; n < kV / kColumns; ++n) {
        auto& columns = *reinterpret_cast<float(*)[kColumns / 8][4]>(&output[0][n * kColumns / 8]);
        Multiply(columns, weight[k], ValueTile::Rows(value_tile, k, n * kColumns / 64), Element());
      }
    }
    WaitForProducts();
  }
};

// The build compiles every source for every architecture; wgmma exists on one.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define TESSERA_HAS_WGMMA 1
#else
#define TESSERA_HAS_WGMMA 0
#endif

template <typename Element, int kQk, int kV>
__global__ void __launch_bounds__(AttendConfig<kQk, kV>::kThreads, 1)
    AttendKernelSm90(const __grid_constant__ AttendParams params) {
#if TESSERA_HAS_WGMMA
  extern __shared__ uint8_t shared[];
  const auto start = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  AttendBlock<AttendMath<Element, kQk, kV>>(params, (start + 1023) / 1024 * 1024).Run();
#endif
}

}  // namespace tessera::cuda::sm90
