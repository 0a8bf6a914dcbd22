// The products of decoding with bf16 dot products (vdpbf16ps), see decode_bf16.cc. Cached rows are multiplied as they
// lie: scores need no conversion at all, values one interleaving of neighbouring rows on the way.
#pragma once

#include <hwy/targets.h>
#include <immintrin.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/cpu/decode.h"
#include "kernels/cpu/decode_ahead_bf16-inl.h"

// GCC 12 warns of the operand that unmasked intrinsics leave undefined on purpose (its bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

HWY_PUSH_ATTRIBUTES("avx,avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")
namespace tessera::cpu::bfloat16 {
namespace {

constexpr int kHalves = 32;       // bf16 elements of a vector
constexpr int kOrderedKeys = 16;  // whose values are added up, column by column, before the next are

inline __m512bh AsHalves(__m512i v) {
  return reinterpret_cast<__m512bh>(v);
}

// Loads 32 elements of a row, or as many as it has from `i` on, and zeros.
inline __m512i LoadHalves(const std::byte* row, int i, int width) {
  if (width - i >= kHalves) return _mm512_loadu_si512(row + 2 * i);
  return _mm512_maskz_loadu_epi16((__mmask32{1} << (width - i)) - 1, row + 2 * i);
}

// The sums of four vectors' lanes.
inline __m128 FourSums(const __m512* v) {
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(v[0], v[1]), _mm512_unpackhi_ps(v[0], v[1]));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(v[2], v[3]), _mm512_unpackhi_ps(v[2], v[3]));
  const __m512d ab2 = _mm512_castps_pd(ab), cd2 = _mm512_castps_pd(cd);
  const __m512 sums =
      _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(ab2, cd2)), _mm512_castpd_ps(_mm512_unpackhi_pd(ab2, cd2)));
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(sums), _mm512_extractf32x8_ps(sums, 1));
  return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

// scores[r][j] = query r . key j. Missing keys of the last four repeat the first of them; their scores are not used.
template <int kRows>
inline void Scores(const DecodeState& state, const DecodeHeadBlock& block, Ahead& ahead, const uint16_t* query,
                   float* scores) {
  const int whole = state.qk_width / kHalves * kHalves;
  for (int j = 0; j < block.count; j += 4) {
    const std::byte* keys[4];
    for (int k = 0; k < 4; ++k) keys[k] = block.key[j + k < block.count ? j + k : j];
    __m512 sum[kRows][4];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) sum[r][k] = _mm512_setzero_ps();
    }
    for (int i = 0; i < whole; i += kHalves) {
      ahead.Ask();
      __m512bh key[4];
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) key[k] = AsHalves(_mm512_loadu_si512(keys[k] + 2 * i));
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const __m512bh q = AsHalves(_mm512_load_si512(query + r * state.qk_stride + i));
#pragma GCC unroll 4
        for (int k = 0; k < 4; ++k) sum[r][k] = _mm512_dpbf16_ps(sum[r][k], q, key[k]);
      }
    }
    if (whole < state.qk_width) {
      ahead.Ask();
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) {
        const __m512bh key = AsHalves(LoadHalves(keys[k], whole, state.qk_width));
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          sum[r][k] =
              _mm512_dpbf16_ps(sum[r][k], AsHalves(_mm512_load_si512(query + r * state.qk_stride + whole)), key);
        }
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) _mm_store_ps(scores + r * kDecodeKeys + j, FourSums(sum[r]));
  }
}

// Calls of Ahead::Ask() by one tile.
inline int ScoreSteps(const DecodeState& state, int count) {
  return (count + 3) / 4 * (state.qk_stride / kHalves);
}
inline int ValueSteps(const DecodeState& state, int count) {
  return (count + 1) / 2 * ((state.v_stride + 63) / 64);
}

// Where the products with the values read them.
enum class Values : uint8_t {
  kRows,         // in the cache's rows, interleaved on the way
  kRowsAndKeep,  // likewise, and left in the state for the block's other tiles
  kKept
};

// Pairs of value rows as vdpbf16ps wants them: element 2i from the even row, 2i + 1 from the odd one.
struct Interleave {
  Interleave() {
    alignas(64) uint16_t order[2][kHalves];
    for (int i = 0; i < kHalves; ++i) {
      order[0][i] = static_cast<uint16_t>(i / 2 + (i % 2) * kHalves);
      order[1][i] = static_cast<uint16_t>(order[0][i] + kHalves / 2);
    }
    low = _mm512_load_si512(order[0]);
    high = _mm512_load_si512(order[1]);
  }
  __m512i low, high;  // which elements make columns 0 to 15 and 16 to 31
};

// output[r][c] += sum over keys j in [begin, end) of weight and value for columns c in [first, first + 16 kVectors).
template <int kRows, int kVectors, Values kValues>
inline void AddColumns(const DecodeState& state, const DecodeHeadBlock& block, Ahead& ahead,
                       const Interleave& interleave, const float* weight_rows, int begin, int end, int first,
                       float* output) {
  static_assert(kVectors % 2 == 0);
  output += first;
  uint16_t* kept = reinterpret_cast<uint16_t*>(state.value) + begin * state.v_stride + 2 * first;
  __m512 sum[kRows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < kVectors; ++c) sum[r][c] = _mm512_load_ps(output + r * state.v_stride + 16 * c);
  }
  __mmask32 present[kVectors / 2];  // columns of the value that there are
  for (int c = 0; c < kVectors / 2; ++c) {
    const int left = state.v_width - first - kHalves * c;
    present[c] = left >= kHalves ? ~__mmask32{0} : (__mmask32{1} << std::max(left, 0)) - 1;
  }
  const int32_t* const weights = reinterpret_cast<const int32_t*>(weight_rows);
  for (int j = begin; j < end; j += 2, kept += 2 * state.v_stride) {
    __m512bh columns[kVectors];
    if constexpr (kValues == Values::kKept) {
#pragma GCC unroll 8
      for (int c = 0; c < kVectors; ++c) columns[c] = AsHalves(_mm512_load_si512(kept + kHalves * c));
    } else {
      const bool odd = j + 1 < block.count;  // a row that is missing is zero, not just its weight: 0 * inf is NaN
      const std::byte* const rows[2] = {block.value[j] + 2 * first, block.value[odd ? j + 1 : j] + 2 * first};
#pragma GCC unroll 4
      for (int c = 0; c < kVectors / 2; ++c) {
        const __m512i a = _mm512_maskz_loadu_epi16(present[c], rows[0] + 2 * kHalves * c);
        const __m512i b = _mm512_maskz_loadu_epi16(odd ? present[c] : 0, rows[1] + 2 * kHalves * c);
        const __m512i low = _mm512_permutex2var_epi16(a, interleave.low, b);
        const __m512i high = _mm512_permutex2var_epi16(a, interleave.high, b);
        if constexpr (kValues == Values::kRowsAndKeep) {
          _mm512_store_si512(kept + 2 * kHalves * c, low);
          _mm512_store_si512(kept + 2 * kHalves * c + kHalves, high);
        }
        columns[2 * c] = AsHalves(low);
        columns[2 * c + 1] = AsHalves(high);
      }
    }
    ahead.Ask();
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const __m512bh weight = AsHalves(_mm512_set1_epi32(weights[r * kDecodeKeys + j / 2]));
#pragma GCC unroll 8
      for (int c = 0; c < kVectors; ++c) sum[r][c] = _mm512_dpbf16_ps(sum[r][c], weight, columns[c]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < kVectors; ++c) _mm512_store_ps(output + r * state.v_stride + 16 * c, sum[r][c]);
  }
}

// output[r] += sum over the block's keys of weight and value.
template <int kRows, Values kValues>
inline void AddValues(const DecodeState& state, const DecodeHeadBlock& block, Ahead& ahead, const float* weights,
                      float* output) {
  const Interleave interleave;
  // Read once, rows should be read in order: the columns of a few before the next few.
  const int step = kValues == Values::kRows && !state.value_in_key ? kOrderedKeys : block.count;
  for (int begin = 0; begin < block.count; begin += step) {
    const int end = std::min(block.count, begin + step);
    int i = 0;
    for (; i + 64 <= state.v_stride; i += 64) {
      AddColumns<kRows, 4, kValues>(state, block, ahead, interleave, weights, begin, end, i, output);
    }
    if (i < state.v_stride) {
      AddColumns<kRows, 2, kValues>(state, block, ahead, interleave, weights, begin, end, i, output);
    }
  }
}

}  // namespace
}  // namespace tessera::cpu::bfloat16
HWY_POP_ATTRIBUTES
#pragma GCC diagnostic pop
