// Elementwise functions and the online softmax of one row of scores.
#if defined(TESSERA_KERNELS_CPU_SOFTMAX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TESSERA_KERNELS_CPU_SOFTMAX_INL_H_
#undef TESSERA_KERNELS_CPU_SOFTMAX_INL_H_
#else
#define TESSERA_KERNELS_CPU_SOFTMAX_INL_H_
#endif

#include <hwy/highway.h>

#include <cmath>
#include <limits>

#include "kernels/cpu/pack-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tessera::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

inline constexpr float kLog2E = 1.44269504f;

// The reference score of a row that has seen no key: below every finite score, yet finite, so that differences with
// -inf scores are not NaN.
inline constexpr float kNoMax = std::numeric_limits<float>::lowest();

// A row's reference score is raised only when a score passes it by this much. Weights up to e^5.5 = 245 cost fp32
// nothing, and after its first block a row hardly ever pays for rescaling.
inline constexpr float kMaxSlack = 5.5f;

// 2^x for x <= 127 within 2 ulp; 0 below the smallest normal number; NaN for NaN. The polynomial is the minimax fit of
// (2^f - 1) / f on [-1/2, 1/2], relative error 9.1e-8, exact at f = 0.
HWY_INLINE FloatVec Exp2(FloatVec x) {
  const FloatTag d;
  const hn::RebindToSigned<FloatTag> di;
  // Adding 1.5 * 2^23 rounds to an integer held in the low mantissa bits, here with the exponent bias already added.
  const FloatVec shifter = hn::Set(d, 12582912.0f + 127.0f);
  const FloatVec shifted = hn::Add(x, shifter);
  const FloatVec f = hn::Sub(x, hn::Sub(shifted, shifter));
  const FloatVec power = hn::BitCast(d, hn::ShiftLeft<23>(hn::BitCast(di, shifted)));
  FloatVec p = hn::Set(d, 1.326472722e-03f);
  p = hn::MulAdd(p, f, hn::Set(d, 9.671512640e-03f));
  p = hn::MulAdd(p, f, hn::Set(d, 5.550733743e-02f));
  p = hn::MulAdd(p, f, hn::Set(d, 2.402224209e-01f));
  p = hn::MulAdd(p, f, hn::Set(d, 6.931469776e-01f));
  p = hn::MulAdd(p, f, hn::Set(d, 1.0f));
  return hn::IfThenZeroElse(hn::Lt(x, hn::Set(d, -126.0f)), hn::Mul(p, power));
}

// tanh within 2 ulp: an odd minimax polynomial (relative error 2.7e-9) below 0.6, 1 - 2 / (e^2x + 1) above.
HWY_INLINE FloatVec Tanh(FloatVec x) {
  const FloatTag d;
  const FloatVec z = hn::Mul(x, x);
  FloatVec p = hn::Set(d, -5.905868692e-03f);
  p = hn::MulAdd(p, z, hn::Set(d, 2.080538485e-02f));
  p = hn::MulAdd(p, z, hn::Set(d, -5.378668366e-02f));
  p = hn::MulAdd(p, z, hn::Set(d, 1.333195824e-01f));
  p = hn::MulAdd(p, z, hn::Set(d, -3.333329927e-01f));
  const FloatVec small = hn::MulAdd(hn::Mul(p, z), x, x);
  const FloatVec magnitude = hn::Abs(x);
  // tanh(10) rounds to 1; the bound keeps e^2x finite. IfThenElse rather than Min, which need not keep NaN.
  const FloatVec bounded = hn::IfThenElse(hn::Gt(magnitude, hn::Set(d, 10.0f)), hn::Set(d, 10.0f), magnitude);
  const FloatVec one = hn::Set(d, 1.0f);
  const FloatVec e = Exp2(hn::Mul(bounded, hn::Set(d, 2.0f * kLog2E)));
  const FloatVec large = hn::Sub(one, hn::Div(hn::Set(d, 2.0f), hn::Add(e, one)));
  return hn::IfThenElse(hn::Lt(magnitude, hn::Set(d, 0.6f)), small, hn::CopySign(large, x));
}

// Turns one row of raw dot products into scores in place. `distance` is query + position_offset - key at the first key
// of the row and falls by `key_stride` per key.
HWY_INLINE void ModifyScores(float* scores, int count, float scale, float soft_cap, float slope, float distance,
                             float key_stride) {
  const FloatTag d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  const FloatVec step = hn::Mul(hn::Iota(d, 0.0f), hn::Set(d, key_stride));
  for (int i = 0; i < count; i += lanes) {
    FloatVec s = hn::Mul(hn::Load(d, scores + i), hn::Set(d, scale));
    if (soft_cap > 0.0f) s = hn::Mul(hn::Set(d, soft_cap), Tanh(hn::Div(s, hn::Set(d, soft_cap))));
    if (slope != 0.0f) {
      const FloatVec away = hn::Abs(hn::Sub(hn::Set(d, distance - static_cast<float>(i) * key_stride), step));
      s = hn::NegMulAdd(hn::Set(d, slope), away, s);
    }
    hn::Store(s, d, scores + i);
  }
}

// Replaces the elements whose bit is clear by `replacement`.
HWY_INLINE void ReplaceHidden(uint64_t bits, int count, float replacement, float* row) {
  const FloatTag d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  const FloatVec hidden = hn::Set(d, replacement);
  for (int i = 0; i < count; i += lanes) {
    const uint64_t lane_bits = bits >> i;  // LoadMaskBits reads up to 8 bytes
    const auto seen = hn::LoadMaskBits(d, reinterpret_cast<const uint8_t*>(&lane_bits));
    hn::Store(hn::IfThenElse(seen, hn::Load(d, row + i), hidden), d, row + i);
  }
}

HWY_INLINE void MaskScores(uint64_t bits, int count, float* scores) {
  ReplaceHidden(bits, count, -std::numeric_limits<float>::infinity(), scores);
}

HWY_INLINE void Rescale(float factor, int v_stride, float* sum, float* output) {
  const FloatTag d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  const FloatVec f = hn::Set(d, factor);
  hn::Store(hn::Mul(hn::Load(d, sum), f), d, sum);
  for (int i = 0; i < v_stride; i += lanes) hn::Store(hn::Mul(hn::Load(d, output + i), f), d, output + i);
}

// Folds `count` scores of one query row, given before multiplication by `scale` > 0, into its accumulators and replaces
// them by weights exp(scale * score - *max). `*max` is the reference score, `sum` one partial denominator per lane,
// `output` the unnormalised row of `v_stride` floats.
HWY_INLINE void SoftmaxRow(float* scores, int count, float scale, int v_stride, float* max, float* sum, float* output) {
  const FloatTag d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  const FloatVec factor = hn::Set(d, scale);
  FloatVec largest = hn::Load(d, scores);
  for (int i = lanes; i < count; i += lanes) largest = hn::Max(largest, hn::Load(d, scores + i));
  FloatVec m = hn::Set(d, *max);
  if (HWY_UNLIKELY(!hn::AllFalse(d, hn::Gt(hn::MulSub(largest, factor, m), hn::Set(d, kMaxSlack))))) {
    const float raised = hn::GetLane(hn::MaxOfLanes(d, largest)) * scale;
    Rescale(std::exp(*max - raised), v_stride, sum, output);
    *max = raised;
    m = hn::Set(d, raised);
  }
  // The difference is taken in units of the score, where it is exact for the largest ones even without a fused
  // multiply-add; converting it to base 2 afterwards costs a relative error only.
  const FloatVec log2e = hn::Set(d, kLog2E);
  FloatVec total = hn::Load(d, sum);
  for (int i = 0; i < count; i += lanes) {
    const FloatVec p = Exp2(hn::Mul(hn::MulSub(hn::Load(d, scores + i), factor, m), log2e));
    hn::Store(p, d, scores + i);
    total = hn::Add(total, p);
  }
  hn::Store(total, d, sum);
}

}  // namespace tessera::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
