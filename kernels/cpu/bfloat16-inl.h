// What forward and backward in bf16 dot products (vdpbf16ps of AVX-512) share: packing into pairs, register tiles,
// powers of two. A dword holds a pair of bf16 factors that one instruction multiplies and adds up: neighbours along
// the width, or the same column of two neighbouring rows.
//
// vdpbf16ps reads bf16 denormals (below 2^-126) as zeros.
#if HWY_TARGET == HWY_AVX3
#if defined(TESSERA_KERNELS_CPU_BFLOAT16_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TESSERA_KERNELS_CPU_BFLOAT16_INL_H_
#undef TESSERA_KERNELS_CPU_BFLOAT16_INL_H_
#else
#define TESSERA_KERNELS_CPU_BFLOAT16_INL_H_
#endif

#include <hwy/highway.h>
#include <immintrin.h>

#include <algorithm>
#include <cstdint>

#include "kernels/cpu/pack-inl.h"
#include "kernels/cpu/softmax-inl.h"

// GCC 12 warns of the operand that unmasked intrinsics leave undefined on purpose (its bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"

// One instruction set more than Highway's AVX3, in this namespace only.
HWY_PUSH_ATTRIBUTES(HWY_TARGET_STR ",avx512bf16")
namespace tessera::cpu::HWY_NAMESPACE::bfloat16 {

inline constexpr int kPairs = kKeyBlock / 2;  // pairs of keys in a block
inline constexpr int kLanes = 16;             // dwords of a vector

HWY_INLINE __m512bh AsPairs(__m512i v) {
  return reinterpret_cast<__m512bh>(v);
}

constexpr int PairsOf(int width) {
  return (width + 1) / 2;
}

// Halves [2 * i, 2 * i + 32) of a row as pairs; zeros from `width` on.
HWY_INLINE __m512i LoadPairs(const uint16_t* row, int i, int width) {
  const int left = width - 2 * i;
  if (HWY_LIKELY(left >= 2 * kLanes)) return _mm512_loadu_si512(row + 2 * i);
  return _mm512_maskz_loadu_epi16(left <= 0 ? 0 : (__mmask32{1} << left) - 1, row + 2 * i);
}

// Transposes 16 x 16 dwords in registers.
HWY_INLINE void Transpose(__m512i v[16]) {
  __m512i t[16];
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    const __m512i a = _mm512_unpacklo_epi32(v[i], v[i + 1]), b = _mm512_unpackhi_epi32(v[i], v[i + 1]);
    const __m512i c = _mm512_unpacklo_epi32(v[i + 2], v[i + 3]), e = _mm512_unpackhi_epi32(v[i + 2], v[i + 3]);
    t[i] = _mm512_unpacklo_epi64(a, c);
    t[i + 1] = _mm512_unpackhi_epi64(a, c);
    t[i + 2] = _mm512_unpacklo_epi64(b, e);
    t[i + 3] = _mm512_unpackhi_epi64(b, e);
  }
  // t[4 g + c] holds, in 128-bit lane l, column 4 l + c of rows 4 g to 4 g + 3.
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    const __m512i ab_low = _mm512_shuffle_i32x4(t[c], t[4 + c], 0x88);
    const __m512i ab_high = _mm512_shuffle_i32x4(t[c], t[4 + c], 0xdd);
    const __m512i cd_low = _mm512_shuffle_i32x4(t[8 + c], t[12 + c], 0x88);
    const __m512i cd_high = _mm512_shuffle_i32x4(t[8 + c], t[12 + c], 0xdd);
    v[c] = _mm512_shuffle_i32x4(ab_low, cd_low, 0x88);
    v[8 + c] = _mm512_shuffle_i32x4(ab_low, cd_low, 0xdd);
    v[4 + c] = _mm512_shuffle_i32x4(ab_high, cd_high, 0x88);
    v[12 + c] = _mm512_shuffle_i32x4(ab_high, cd_high, 0xdd);
  }
}

// Asks for rows [row, row + kKeyBlock) as far as they exist. Rows of one head are often far apart, which the
// processor's own prefetcher does not follow.
HWY_INLINE void PrefetchRows(const ConstTensorView& from, int64_t row, int head) {
  const int64_t end = std::min(from.rows, row + kKeyBlock);
  for (; row < end; ++row) {
    const auto* const bytes = static_cast<const char*>(from.At(row, head));
    for (int i = 0; i < 2 * from.width; i += 64) _mm_prefetch(bytes + i, _MM_HINT_T1);
  }
}

// A row of `width` halves as `stride` pairs, padded with zeros; null is a row of zeros.
HWY_INLINE void CopyRow(const void* row, int width, int stride, uint32_t* to) {
  const size_t bytes = row != nullptr ? static_cast<size_t>(width) * 2 : 0;
  if (bytes > 0) std::memcpy(to, row, bytes);
  std::memset(reinterpret_cast<char*>(to) + bytes, 0, static_cast<size_t>(stride) * sizeof(uint32_t) - bytes);
}

// Packs the rows row(0), row(1), ... of `width` halves, null where there is none, as [depth][stride] pairs along the
// width; `stride` counts the rows, a multiple of 16. From PairsOf(width) to `depth` they are zero.
template <class Row>
HWY_INLINE void PackColumns(const Row& row, int width, int depth, int stride, uint32_t* to) {
  for (int j = 0; j < stride; j += kLanes) {
    for (int i = 0; i < depth; i += kLanes) {
      __m512i v[16];
#pragma GCC unroll 16
      for (int k = 0; k < 16; ++k) {
        const void* const from = row(j + k);
        v[k] = from != nullptr ? LoadPairs(static_cast<const uint16_t*>(from), i, width) : _mm512_setzero_si512();
      }
      Transpose(v);
#pragma GCC unroll 16
      for (int k = 0; k < 16; ++k) {
        if (i + k < depth) _mm512_store_si512(to + (i + k) * stride + j, v[k]);
      }
    }
  }
}

// Packs `count` rows from `row` on as [depth][kKeyBlock] pairs along the width; absent rows are zero.
HWY_INLINE void PackTransposed(const ConstTensorView& from, int64_t row, int count, int head, int depth, uint32_t* to) {
  PackColumns([&](int k) HWY_ATTR -> const void* { return k < count ? from.At(row + k, head) : nullptr; }, from.width,
              depth, kKeyBlock, to);
}

// Interleaves rows: out[16 k + j] is the pair (even row, odd row) of column i + 16 k + j.
class Interleaver {
 public:
  HWY_INLINE Interleaver() {
    alignas(64) uint16_t order[2][2 * kLanes];
    for (int i = 0; i < 2 * kLanes; ++i) {
      order[0][i] = static_cast<uint16_t>(i / 2 + (i % 2) * 2 * kLanes);
      order[1][i] = static_cast<uint16_t>(order[0][i] + kLanes);
    }
    low_ = _mm512_load_si512(order[0]);
    high_ = _mm512_load_si512(order[1]);
  }
  HWY_INLINE __m512i Low(__m512i even, __m512i odd) const { return _mm512_permutex2var_epi16(even, low_, odd); }
  HWY_INLINE __m512i High(__m512i even, __m512i odd) const { return _mm512_permutex2var_epi16(even, high_, odd); }

 private:
  __m512i low_, high_;
};

// Lanes that hold a half which is NaN or infinite.
HWY_INLINE __mmask32 NotFinite(__m512i halves) {
  return _mm512_cmpgt_epu16_mask(_mm512_and_si512(halves, _mm512_set1_epi16(0x7fff)), _mm512_set1_epi16(0x7f7f));
}

// Packs two rows, null where there is none, as [stride] pairs; `stride` is `width` rounded up to whole vectors. True
// when all elements are finite.
HWY_INLINE bool PackTwoRows(const Interleaver& interleave, const void* even, const void* odd, int width, int stride,
                            uint32_t* to) {
  __mmask32 poison = 0;
  for (int i = 0; i < stride; i += 2 * kLanes) {
    const __m512i none = _mm512_setzero_si512();
    const __m512i a = even != nullptr ? LoadPairs(static_cast<const uint16_t*>(even), i / 2, width) : none;
    const __m512i b = odd != nullptr ? LoadPairs(static_cast<const uint16_t*>(odd), i / 2, width) : none;
    poison |= NotFinite(a) | NotFinite(b);
    _mm512_store_si512(to + i, interleave.Low(a, b));
    if (i + kLanes < stride) _mm512_store_si512(to + i + kLanes, interleave.High(a, b));
  }
  return poison == 0;
}

// Packs `count` rows from `row` on as [kPairs][stride] pairs of neighbouring rows; absent rows are zero. False if an
// element is NaN or infinite.
HWY_INLINE bool PackRowPairs(const ConstTensorView& from, int64_t row, int count, int head, int stride, uint32_t* to) {
  const Interleaver interleave;
  bool finite = true;
  int j = 0;
  for (; j < count; j += 2, to += stride) {
    const void* const odd = j + 1 < count ? from.At(row + j + 1, head) : nullptr;
    finite &= PackTwoRows(interleave, from.At(row + j, head), odd, from.width, stride, to);
  }
  for (; j < kKeyBlock; j += 2, to += stride) std::memset(to, 0, static_cast<size_t>(stride) * sizeof(uint32_t));
  return finite;
}

// 2^x for x <= 127; 0 for x <= -127 and -inf; NaN for NaN. The minimax polynomial of degree 4 for 2^f on [-1/2, 1/2]
// has a relative error of 3.6e-6: nothing beside the rounding of weights to bf16, and a third of what is promised of
// the LSE. Multiplications and fused additions share two of the four vector pipes with vdpbf16ps on Zen 5: five of them
// here; the rest runs beside.
HWY_INLINE __m512 Exp2(__m512 x) {
  const __m512 shifter = _mm512_set1_ps(12582912.0f + 127.0f);  // as in softmax-inl.h
  x = _mm512_max_ps(_mm512_set1_ps(-127.0f), x);                // keeps NaN, which is the second operand
  const __m512 shifted = _mm512_add_ps(x, shifter);
  const __m512 f = _mm512_sub_ps(x, _mm512_sub_ps(shifted, shifter));
  const __m512 power = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(shifted), 23));
  __m512 p = _mm512_set1_ps(9.782912210e-03f);
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.597688258e-02f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.402071059e-01f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.931136250e-01f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
  return _mm512_mul_ps(p, power);
}

// sum over i < depth of left[i * left_step + r * left_stride] * right[i * right_stride + 16 c], pair by pair, added to
// what `start(r, c)` gives. Handed to `use(r, c, sum)`.
template <int kRows, int kVectors, class Start, class Use>
HWY_INLINE void Multiply(const uint32_t* HWY_RESTRICT left, size_t left_step, size_t left_stride,
                         const uint32_t* HWY_RESTRICT right, size_t right_stride, int depth, const Start& start,
                         const Use& use) {
  __m512 sum[kRows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < kVectors; ++c) sum[r][c] = start(r, c);
  }
  for (int i = 0; i < depth; ++i) {
    __m512bh columns[kVectors];
#pragma GCC unroll 8
    for (int c = 0; c < kVectors; ++c) columns[c] = AsPairs(_mm512_load_si512(right + c * kLanes));
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const __m512bh row = AsPairs(_mm512_set1_epi32(static_cast<int>(left[r * left_stride])));
#pragma GCC unroll 8
      for (int c = 0; c < kVectors; ++c) sum[r][c] = _mm512_dpbf16_ps(sum[r][c], row, columns[c]);
    }
    left += left_step;
    right += right_stride;
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < kVectors; ++c) use(r, c, sum[r][c]);
  }
}

// Calls column.template operator()<n>(i) for runs of n <= 4 vectors that cover [0, vectors), i the first of a run.
template <class Column>
HWY_INLINE void ForColumns(int vectors, const Column& column) {
  int i = 0;
  for (; i + 4 <= vectors; i += 4) column.template operator()<4>(i);
  switch (vectors - i) {
    case 3:
      return column.template operator()<3>(i);
    case 2:
      return column.template operator()<2>(i);
    case 1:
      return column.template operator()<1>(i);
    default:
      return;
  }
}

// output[r][16 c] = the product of Multiply for `vectors` vectors of columns; rows of `output` are `output_stride`
// apart.
template <int kRows>
HWY_INLINE void Product(const uint32_t* left, size_t left_step, size_t left_stride, const uint32_t* right,
                        size_t right_stride, int depth, int vectors, float* output, size_t output_stride) {
  ForColumns(vectors, [=]<int kVectors>(int i) HWY_ATTR {
    Multiply<kRows, kVectors>(
        left, left_step, left_stride, right + i * kLanes, right_stride, depth,
        [](int, int) HWY_ATTR { return _mm512_setzero_ps(); },
        [=](int r, int c, __m512 sum)
            HWY_ATTR { _mm512_store_ps(output + r * output_stride + (i + c) * kLanes, sum); });
  });
}

// output[r] += the same product, rows of `right` and `output` both `stride` wide. What is summed apart is as long as a
// block; see AddProduct of tile-inl.h.
template <int kRows>
HWY_INLINE void AddProduct(const uint32_t* left, size_t left_step, size_t left_stride, const uint32_t* right,
                           int stride, int depth, float* output) {
  ForColumns(stride / kLanes, [=]<int kVectors>(int i) HWY_ATTR {
    float* const out = output + i * kLanes;
    Multiply<kRows, kVectors>(
        left, left_step, left_stride, right + i * kLanes, stride, depth,
        [=](int r, int c) HWY_ATTR { return _mm512_load_ps(out + r * stride + c * kLanes); },
        [=](int r, int c, __m512 sum) HWY_ATTR { _mm512_store_ps(out + r * stride + c * kLanes, sum); });
  });
}

// AddProduct for one row, over the halves of `right` that `seen(row of the pair)` allows: one of the others is NaN or
// infinite.
template <class Seen>
HWY_INLINE void AddSeenProduct(const uint32_t* left, size_t left_step, const Seen& seen, const uint32_t* right,
                               int stride, int depth, float* output) {
  for (int c = 0; c < stride; c += kLanes) {
    __m512 sum = _mm512_load_ps(output + c);
    for (int i = 0; i < depth; ++i) {
      const uint32_t halves = (seen(2 * i) ? 0xffffu : 0u) | (seen(2 * i + 1) ? 0xffff0000u : 0u);
      if (halves == 0) continue;
      const __m512i kept =
          _mm512_and_si512(_mm512_load_si512(right + i * stride + c), _mm512_set1_epi32(static_cast<int>(halves)));
      sum = _mm512_dpbf16_ps(sum, AsPairs(_mm512_set1_epi32(static_cast<int>(left[i * left_step]))), AsPairs(kept));
    }
    _mm512_store_ps(output + c, sum);
  }
}

}  // namespace tessera::cpu::HWY_NAMESPACE::bfloat16
HWY_POP_ATTRIBUTES
#pragma GCC diagnostic pop
#endif
#endif  // HWY_AVX3
