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
    for (int i = static_cast<int>(threadIdx.x); i < kRows * kPieces; i += kThreads) {
      const int row = i / kPieces, piece = i % kPieces;
      const bool inside = row < rows && piece * 8 < width;
      const uint16_t* const source = inside ? global + row * row_stride + piece * 8 : global;
      if (vector) {
        CopyAsync(tile + Offset(row, piece), source, inside ? 16 : 0);
      } else {
        StoreElements(tile + Offset(row, piece), source, inside ? min(width - piece * 8, 8) : 0);
      }
    }
  }

 private:
  static __device__ __forceinline__ void StoreElements(uint32_t shared, const uint16_t* source, int count) {
    uint32_t words[4] = {};
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (i < count) words[i / 2] |= uint32_t{source[i]} << (i % 2 * 16);
    }
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};"
                 :
                 : "r"(shared), "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3])
                 : "memory");
  }
};

}  // namespace tessera::cuda::sm80
