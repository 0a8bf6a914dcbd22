// The four lanes of a quad hold one row's columns, so a row's element of A is broadcast within 128 bits, which is one
// shuffle; B's elements for a quad are the same in every quad. No other data moves.
#include "tests/virtual_gpu/ptx/lanes.h"
#include "tests/virtual_gpu/ptx/matrix.h"

#if defined(__x86_64__)
#include <immintrin.h>

namespace tessera::vgpu {
namespace {

#define TESSERA_VGPU_AVX2 __attribute__((target("avx2,fma,f16c"), always_inline)) inline

// The low or high halves of eight packed pairs, as float.
template <bool kBf16>
TESSERA_VGPU_AVX2 __m256 Halves(__m256i pairs, bool high) {
  if (kBf16) {
    return _mm256_castsi256_ps(high ? _mm256_and_si256(pairs, _mm256_set1_epi32(static_cast<int>(0xffff0000u)))
                                    : _mm256_slli_epi32(pairs, 16));
  }
  const __m256i words = high ? _mm256_srli_epi32(pairs, 16) : _mm256_and_si256(pairs, _mm256_set1_epi32(0xffff));
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(words, words), 0xd8);
  return _mm256_cvtph_ps(_mm256_castsi256_si128(packed));
}

// even[2j + h], odd[2j + h]: rows k = 2j + h of B, at columns 2t and 2t + 1 for t = 0 to 3, twice.
template <bool kBf16>
TESSERA_VGPU_AVX2 void SpreadB(const uint32_t* b, __m256* even, __m256* odd) {
  for (int parity = 0; parity < 2; ++parity) {
    __m128 rows[4];
    for (int t = 0; t < 4; ++t) rows[t] = _mm_load_ps(reinterpret_cast<const float*>(b + 4 * (2 * t + parity)));
    _MM_TRANSPOSE4_PS(rows[0], rows[1], rows[2], rows[3]);
    for (int j = 0; j < 4; ++j) {
      const __m256i twice = _mm256_broadcastsi128_si256(_mm_castps_si128(rows[j]));
      for (int h = 0; h < 2; ++h) (parity == 0 ? even : odd)[2 * j + h] = Halves<kBf16>(twice, h != 0);
    }
  }
}

struct Sums {
  __m256 c[4];
};

template <int kJ>
TESSERA_VGPU_AVX2 void Step(Sums& s, const __m256* upper, const __m256* lower, const __m256* even, const __m256* odd) {
  for (int h = 0; h < 2; ++h) {
    const __m256 top = _mm256_permute_ps(upper[h], kJ * 0x55);
    const __m256 bottom = _mm256_permute_ps(lower[h], kJ * 0x55);
    s.c[0] = _mm256_fmadd_ps(top, even[2 * kJ + h], s.c[0]);
    s.c[1] = _mm256_fmadd_ps(top, odd[2 * kJ + h], s.c[1]);
    s.c[2] = _mm256_fmadd_ps(bottom, even[2 * kJ + h], s.c[2]);
    s.c[3] = _mm256_fmadd_ps(bottom, odd[2 * kJ + h], s.c[3]);
  }
}

template <int kK, bool kBf16>
__attribute__((target("avx2,fma,f16c"))) void Multiply(const uint32_t* const* a, const uint32_t* const* b,
                                                       const uint32_t* const* c, uint32_t* const* d) {
  constexpr int kBlocks = kK / 8;  // of eight values of k
  __m256 even[kBlocks][8], odd[kBlocks][8];
  for (int block = 0; block < kBlocks; ++block) SpreadB<kBf16>(b[block], even[block], odd[block]);
  Sums sums[4];
  for (int q = 0; q < 4; ++q) {
    Sums s;
    for (int r = 0; r < 4; ++r) s.c[r] = _mm256_load_ps(reinterpret_cast<const float*>(c[r] + 8 * q));
    for (int block = 0; block < kBlocks; ++block) {
      __m256 upper[2], lower[2];
      for (int h = 0; h < 2; ++h) {
        upper[h] = Halves<kBf16>(_mm256_load_si256(reinterpret_cast<const __m256i*>(a[2 * block] + 8 * q)), h != 0);
        lower[h] = Halves<kBf16>(_mm256_load_si256(reinterpret_cast<const __m256i*>(a[2 * block + 1] + 8 * q)), h != 0);
      }
      Step<0>(s, upper, lower, even[block], odd[block]);
      Step<1>(s, upper, lower, even[block], odd[block]);
      Step<2>(s, upper, lower, even[block], odd[block]);
      Step<3>(s, upper, lower, even[block], odd[block]);
    }
    sums[q] = s;
  }
  // Stored at the end: d may be any of the sources.
  for (int q = 0; q < 4; ++q) {
    for (int r = 0; r < 4; ++r) _mm256_store_ps(reinterpret_cast<float*>(d[r] + 8 * q), sums[q].c[r]);
  }
}

}  // namespace

void FastProduct(int k, bool bf16, const uint32_t* const* a, const uint32_t* const* b, const uint32_t* const* c,
                 uint32_t* const* d) {
  if (k == 16) return bf16 ? Multiply<16, true>(a, b, c, d) : Multiply<16, false>(a, b, c, d);
  return bf16 ? Multiply<8, true>(a, b, c, d) : Multiply<8, false>(a, b, c, d);
}

}  // namespace tessera::vgpu
#endif
