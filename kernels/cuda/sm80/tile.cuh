// Tiles of rows in shared memory: 16-byte pieces, permuted within a row so that eight consecutive rows of one column
// lie in different banks.
#pragma once

#include <cstdint>

#include "kernels/cuda/sm80/mma.cuh"

namespace tessera::cuda::sm80 {

inline constexpr int kThreads = 128;
inline constexpr int kWarps = kThreads / 32;

template <int kWidth>
struct Tile {
  static_assert(kWidth % 32 == 0);
  static constexpr int kPieces = kWidth / 8;  // of a row, 16 bytes each
  static constexpr int kRowBytes = kWidth * 2;

  // Rows of a multiple of 128 bytes all start in bank 0 and need eight places; rows of 64 odd bytes (width 96) start in
  // bank 0 or 16 by turns and need four.
  static __device__ __forceinline__ uint32_t Offset(int row, int piece) {
    const int place = kWidth % 64 == 0 ? piece ^ (row & 7) : piece ^ ((row >> 1) & 3);
    return static_cast<uint32_t>(row * kRowBytes + place * 16);
  }

  // Addresses of 16-column groups of a row, for lanes that walk columns and rows in steps of 16: a start, of which the
  // walk changes only the bits that the permutation does (exclusive or) and the rest (sums the compiler folds).
  static __device__ __forceinline__ uint32_t Start(uint32_t tile, int row, int half) {
    return tile + Offset(row, half);
  }
  static __device__ __forceinline__ uint32_t At(uint32_t start, int rows16, int columns16) {
    constexpr int kSpan = kWidth % 64 == 0 ? 4 : 2;  // groups that the permutation mixes
    return (start ^ (columns16 % kSpan * 32)) + columns16 / kSpan * kSpan * 32 + rows16 * 16 * kRowBytes;
  }

  // Fills kRows rows from global memory, in the background where `vector` allows it. Rows from `rows` on and columns
  // from `width` on become zero.
  template <int kRows>
  static __device__ __forceinline__ void Load(uint32_t tile, const uint16_t* global, int64_t row_stride, int rows,
                                              int width, bool vector) {
    // Addresses of more than two at once would not fit the registers beside accumulators.
    LoadPieces<kRows, kPieces, kThreads, 2>(tile, global, row_stride, rows, width, vector, Offset);
  }

  // Fills rows first_row + i * kWarps, i < kRows, by the lanes of one warp, each from rows(i): a pointer, null for
  // zeros. `somewhere` is any address of global memory.
  template <int kRows, typename Rows>
  static __device__ __forceinline__ void LoadRows(uint32_t tile, int first_row, int width, bool vector, int lane,
                                                  const void* somewhere, Rows rows) {
    if (vector) {
#pragma unroll 4
      for (int i = 0; i < kRows; ++i) {
        const uint16_t* const row = rows(i);
        for (int piece = lane; piece < kPieces; piece += 32) {
          const bool inside = row != nullptr && piece * 8 < width;
          CopyAsync(tile + Offset(first_row + i * kWarps, piece), inside ? row + piece * 8 : somewhere,
                    inside ? 16 : 0);
        }
      }
    } else {
#pragma unroll 1
      for (int i = 0; i < kRows; ++i) {
        const uint16_t* const row = rows(i);
#pragma unroll 1
        for (int piece = lane; piece < kPieces; piece += 32) {
          StoreElements(tile + Offset(first_row + i * kWarps, piece), row + piece * 8,
                        row == nullptr ? 0 : width - piece * 8);
        }
      }
    }
  }
};

// A tile with its number of rows.
template <int kWidth, int kRows>
struct SizedTile : Tile<kWidth> {
  static constexpr int kBytes = kRows * Tile<kWidth>::kRowBytes;
  static __device__ __forceinline__ void Load(uint32_t tile, const uint16_t* global, int64_t row_stride, int rows,
                                              int width, bool vector) {
    Tile<kWidth>::template Load<kRows>(tile, global, row_stride, rows, width, vector);
  }
};

}  // namespace tessera::cuda::sm80
