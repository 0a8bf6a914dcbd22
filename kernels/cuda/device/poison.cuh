// Infinities and NaN in tiles of shared memory. A weight of 0 times either is NaN, so where some rows have a weight of
// 0 by their mask, products must not see them.
#pragma once

#include <cstdint>

namespace tessera::cuda {

__device__ __forceinline__ void LoadPiece(uint32_t (&words)[4], uint32_t address) {
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(address)
               : "memory");
}

// Whether the share of one of `threads` threads of a tile of kBytes has any.
template <typename Element, int kBytes>
__device__ __forceinline__ bool AnyNonFinite(uint32_t tile, int thread, int threads) {
  bool any = false;
  for (int i = thread; i < kBytes / 16; i += threads) {
    uint32_t words[4];
    LoadPiece(words, tile + i * 16);
#pragma unroll
    for (uint32_t word : words) any |= Element::AnyNonFinite(word);
  }
  return any;
}

// Writes 0 in their place, in the same share.
template <typename Element, int kBytes>
__device__ __forceinline__ void ClearNonFinite(uint32_t tile, int thread, int threads) {
  for (int i = thread; i < kBytes / 16; i += threads) {
    uint32_t words[4];
    LoadPiece(words, tile + i * 16);
#pragma unroll
    for (uint32_t& word : words) {
      if (Element::AnyNonFinite(word & 0xffffu)) word &= 0xffff0000u;
      if (Element::AnyNonFinite(word & 0xffff0000u)) word &= 0xffffu;
    }
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};"
                 :
                 : "r"(tile + i * 16), "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3])
                 : "memory");
  }
}

}  // namespace tessera::cuda
