// Products of matrices of bf16 pairs on a tile unit, up to four tiles of sums at a time.
#if HWY_TARGET == HWY_AVX3
#if defined(TESSERA_KERNELS_CPU_PRODUCT_AMX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TESSERA_KERNELS_CPU_PRODUCT_AMX_INL_H_
#undef TESSERA_KERNELS_CPU_PRODUCT_AMX_INL_H_
#else
#define TESSERA_KERNELS_CPU_PRODUCT_AMX_INL_H_
#endif

#include <hwy/highway.h>
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

HWY_PUSH_ATTRIBUTES(HWY_TARGET_STR ",avx512bf16")
namespace tessera::cpu::HWY_NAMESPACE::amx {

inline constexpr int kTileRows = 16;  // and dwords of a row: a tile register
inline constexpr int kGroup = 32;     // keys, or rows, of one step of a product along them

// Row i of the pairs that a product along keys or rows takes in one step: i and i + 16 of the group, because rounding
// and joining two vectors of fp32 leaves them so.
HWY_INLINE __m512i JoinPairs(__m512 low, __m512 high) {
  // By integer instructions: vcvtne2ps2bf16 takes two cycles where there are tiles.
  const __m512i half = _mm512_set1_epi32(0x8000), upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  const __m512i a = _mm512_srli_epi32(_mm512_add_epi32(_mm512_castps_si512(low), half), 16);
  const __m512i b = _mm512_add_epi32(_mm512_castps_si512(high), half);
  return _mm512_ternarylogic_epi32(a, b, upper, 0xf8);  // a | (b & upper)
}

enum class Once : uint8_t { kLeft, kRight };

template <int kTile, bool kPassing, class Tiles>
HWY_INLINE void LoadOperand(Tiles& tiles, const uint32_t* from, size_t row_bytes) {
  if constexpr (kPassing) {
    tiles.template LoadOnce<kTile>(from, row_bytes);
  } else {
    tiles.template Load<kTile>(from, row_bytes);
  }
}

// sum (+)= over `steps` of left(step) . right(step), kM x kN tiles of 16 x 16 fp32:
//   left(step)   [16 kM][16] pairs, rows `left_stride` dwords apart
//   right(step)  [16][16 kN] pairs, rows `right_stride` dwords apart
//   sum          [16 kM][16 kN], rows `sum_stride` floats apart; added to when kAdd, else overwritten
// `beside()` is called after each product, for what another unit of the core may do meanwhile. Operands are loaded just
// before they are used; each sum is stored behind the next product, because a tile store holds up the instructions
// after it. Operands of the side `kOnce` pass the first-level cache by: they are used once before others have displaced
// them.
template <int kM, int kN, bool kAdd, Once kOnce = Once::kRight, class Tiles, class Left, class Right, class Beside>
HWY_INLINE void MultiplyTiles(Tiles& tiles, const Left& left, size_t left_stride, const Right& right,
                              size_t right_stride, int steps, float* sum, size_t sum_stride, const Beside& beside) {
  static_assert(kM <= 2 && kN <= 2);
  constexpr bool kLeftOnce = kOnce == Once::kLeft, kRightOnce = kOnce == Once::kRight;
  const size_t left_bytes = left_stride * sizeof(uint32_t), right_bytes = right_stride * sizeof(uint32_t);
  const size_t sum_bytes = sum_stride * sizeof(float);
  float* const below = sum + kTileRows * sum_stride;
  if constexpr (kAdd) {
    tiles.template Load<0>(sum, sum_bytes);
    if constexpr (kN == 2) tiles.template Load<1>(sum + kTileRows, sum_bytes);
    if constexpr (kM == 2) tiles.template Load<2>(below, sum_bytes);
    if constexpr (kM == 2 && kN == 2) tiles.template Load<3>(below + kTileRows, sum_bytes);
  } else {
    tiles.template Zero<0>();
    if constexpr (kN == 2) tiles.template Zero<1>();
    if constexpr (kM == 2) tiles.template Zero<2>();
    if constexpr (kM == 2 && kN == 2) tiles.template Zero<3>();
  }
  for (int step = 0; step < steps; ++step) {
    const bool last = step + 1 == steps;
    const uint32_t* const a = left(step);
    const uint32_t* const b = right(step);
    LoadOperand<6, kRightOnce>(tiles, b, right_bytes);
    LoadOperand<4, kLeftOnce>(tiles, a, left_bytes);
    tiles.template Dot<0, 4, 6>();
    beside();
    if constexpr (kN == 2) {
      LoadOperand<7, kRightOnce>(tiles, b + kTileRows, right_bytes);
      tiles.template Dot<1, 4, 7>();
      if (last) tiles.template Store<0>(sum, sum_bytes);
      beside();
    }
    if constexpr (kM == 2) {
      LoadOperand<5, kLeftOnce>(tiles, a + kTileRows * left_stride, left_bytes);
      tiles.template Dot<2, 5, 6>();
      if constexpr (kN == 2) {
        if (last) tiles.template Store<1>(sum + kTileRows, sum_bytes);
        beside();
        tiles.template Dot<3, 5, 7>();
        if (last) tiles.template Store<2>(below, sum_bytes);
      } else {
        if (last) tiles.template Store<0>(sum, sum_bytes);
      }
      beside();
    }
  }
  if constexpr (kM == 2 && kN == 2) {
    tiles.template Store<3>(below + kTileRows, sum_bytes);
  } else if constexpr (kM == 2) {
    tiles.template Store<2>(below, sum_bytes);
  } else if constexpr (kN == 2) {
    tiles.template Store<1>(sum + kTileRows, sum_bytes);
  } else {
    tiles.template Store<0>(sum, sum_bytes);
  }
}

}  // namespace tessera::cpu::HWY_NAMESPACE::amx
HWY_POP_ATTRIBUTES
#endif
#endif  // HWY_AVX3
