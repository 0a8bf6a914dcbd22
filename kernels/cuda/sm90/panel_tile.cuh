// Tiles of rows in shared memory as Hopper's products and its copy engine have them: panels of 64 columns, rows of 128
// bytes whose 16-byte pieces are permuted within groups of eight rows. Tiles start at multiples of 1024 bytes.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "kernels/cuda/device/copy.cuh"
#include "kernels/cuda/sm90/barrier.cuh"
#include "kernels/cuda/sm90/tensor_map.h"
#include "kernels/cuda/sm90/wgmma.cuh"

namespace tessera::cuda::sm90 {

inline constexpr int kWarpgroup = 128;  // threads

// The first address in a block's dynamic shared memory where a tile may start.
__device__ __forceinline__ uint32_t FirstTile(const uint8_t* shared) {
  return (static_cast<uint32_t>(__cvta_generic_to_shared(shared)) + 1023) / 1024 * 1024;
}

// A box into shared memory; its bytes arrive at the barrier.
__device__ __forceinline__ void LoadBox(uint32_t shared, const CUtensorMap& map, int column, int row, int head,
                                        uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], [%5];"
      :
      : "r"(shared), "l"(&map), "r"(column), "r"(row), "r"(head), "r"(barrier)
      : "memory");
}

// The same of a paged tensor: a row of a page.
__device__ __forceinline__ void LoadBox(uint32_t shared, const CUtensorMap& map, int column, int row, int head,
                                        int page, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5}], [%6];"
      :
      : "r"(shared), "l"(&map), "r"(column), "r"(row), "r"(head), "r"(page), "r"(barrier)
      : "memory");
}

// This thread's copies are there for the tensor cores to read once the barrier's phase is over.
__device__ __forceinline__ void FinishCopies(uint32_t barrier) {
  CommitCopies();
  WaitForAllCopies();
  PublishShared();
  Arrive(barrier);
}

template <int kWidth, int kRows>
struct PanelTile {
  static_assert(kWidth % kPanelColumns == 0 && kRows % 8 == 0);
  static constexpr int kBytes = kRows * kWidth * 2;
  static constexpr int kPanels = kWidth / kPanelColumns;
  static constexpr uint32_t kPanelBytes = kRows * 128;
  static constexpr uint32_t kGroupBytes = 8 * 128;

  static __device__ __forceinline__ uint32_t Offset(int row, int piece) {
    return piece / 8 * kPanelBytes + row * 128 + ((piece ^ row) & 7) * 16;
  }
  // Rows from `row` on, 16 columns from 16 * columns16 on, summed over columns.
  static __device__ __forceinline__ uint64_t Columns(uint32_t tile, int row, int columns16) {
    return Descriptor(tile + columns16 / 4 * kPanelBytes + row * 128 + columns16 % 4 * 32, 16, kGroupBytes);
  }
  // 16 rows from 16 * rows16 on, columns from 64 * panel on, summed over rows.
  static __device__ __forceinline__ uint64_t Rows(uint32_t tile, int rows16, int panel) {
    return Descriptor(tile + panel * kPanelBytes + rows16 * 2 * kGroupBytes, kPanelBytes, kGroupBytes);
  }

  // By one thread: rows of one head from `row` on, by the copy engine. Rows and columns beyond the tensor's become
  // zero; rows beyond those wanted hold whatever the tensor has there. kBytes arrive at the barrier.
  static __device__ __forceinline__ void LoadBoxes(uint32_t tile, const CUtensorMap& map, int row, int head,
                                                   uint32_t barrier) {
#pragma unroll
    for (int panel = 0; panel < kPanels; ++panel) {
      LoadBox(tile + panel * kPanelBytes, map, panel * kPanelColumns, row, head, barrier);
    }
  }

  // By the first warpgroup of a block, for tensors that the copy engine does not take: begins to copy. Rows from `rows`
  // on and columns from `width` on become zero.
  static __device__ __forceinline__ void Copy(uint32_t tile, const Matrix<const uint16_t>& matrix, int64_t row,
                                              int head, int rows, int width, bool vector) {
    LoadPieces<kRows, kWidth / 8, kWarpgroup, 1>(tile,
                                                 matrix.data + row * matrix.row_stride + head * matrix.head_stride,
                                                 matrix.row_stride, rows, width, vector, Offset);
  }

  // Begins to copy all rows, each by the lanes of one of kWarps warps, from rows(i): a pointer, null for zeros.
  // `somewhere` is any address of global memory.
  template <int kWarps, typename Rows>
  static __device__ __forceinline__ void CopyRows(uint32_t tile, int warp, int lane, int width, bool vector,
                                                  const void* somewhere, Rows rows) {
#pragma unroll 1
    for (int row = warp; row < kRows; row += kWarps) {
      const uint16_t* const from = rows(row);
#pragma unroll 1
      for (int piece = lane; piece < kWidth / 8; piece += 32) {
        const bool inside = from != nullptr && piece * 8 < width;
        if (vector) {
          CopyAsync(tile + Offset(row, piece), inside ? from + piece * 8 : somewhere, inside ? 16 : 0);
        } else {
          StoreElements(tile + Offset(row, piece), from + piece * 8, inside ? width - piece * 8 : 0);
        }
      }
    }
  }

  // Writes zeros to rows outside [first, end), in the share of one of `threads` threads.
  static __device__ __forceinline__ void ClearRows(uint32_t tile, int first, int end, int thread, int threads) {
    for (int i = thread; i < kBytes / 16; i += threads) {
      const int row = i * 16 % static_cast<int>(kPanelBytes) / 128;
      if (row >= first && row < end) continue;
      asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" : : "r"(tile + i * 16), "r"(0) : "memory");
    }
  }
};

}  // namespace tessera::cuda::sm90
