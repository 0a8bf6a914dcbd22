// Conversion of tensor rows to the fp32 layouts that the register tiles read.
#if defined(TESSERA_KERNELS_CPU_PACK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TESSERA_KERNELS_CPU_PACK_INL_H_
#undef TESSERA_KERNELS_CPU_PACK_INL_H_
#else
#define TESSERA_KERNELS_CPU_PACK_INL_H_
#endif

#include <hwy/highway.h>

#include <cstring>

#include "kernels/cpu/attend.h"

HWY_BEFORE_NAMESPACE();
namespace tessera::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using FloatTag = hn::ScalableTag<float>;
using FloatVec = hn::Vec<FloatTag>;

// Where fp16 conversion is an instruction. Highway 1.0.3 emulates it elsewhere without infinities and NaN, so the other
// targets convert element by element.
inline constexpr bool kVectorFloat16 = (HWY_TARGET & (HWY_AVX3 | HWY_AVX2 | HWY_NEON)) != 0;

template <typename Half>
HWY_INLINE int HalvesToFloats(const void* source, int width, float* to) {
  const FloatTag d;
  const hn::Rebind<Half, FloatTag> dh;
  const int lanes = static_cast<int>(hn::Lanes(d));
  int i = 0;
  for (; i + lanes <= width; i += lanes) {
    hn::StoreU(hn::PromoteTo(d, hn::LoadU(dh, static_cast<const Half*>(source) + i)), d, to + i);
  }
  return i;
}

// One row of `width` elements; neither side need be aligned.
HWY_INLINE void ToFloats(const void* source, DType dtype, int width, float* to) {
  int done = 0;
  if (dtype == DType::kFloat32) {
    std::memcpy(to, source, static_cast<size_t>(width) * sizeof(float));
    return;
  }
  if (dtype == DType::kBFloat16) done = HalvesToFloats<hwy::bfloat16_t>(source, width, to);
  if constexpr (kVectorFloat16) {
    if (dtype == DType::kFloat16) done = HalvesToFloats<hwy::float16_t>(source, width, to);
  }
  for (; done < width; ++done) to[done] = LoadAsFloat(source, dtype, done);
}

// to[i * kKeyBlock + j] = rows[j][i] for four rows.
HWY_INLINE void TransposeFourRows(const float* const rows[4], int width, float* to) {
  int i = 0;
#if HWY_TARGET != HWY_SCALAR
  const hn::FixedTag<float, 4> d;
  for (; i + 4 <= width; i += 4) {
    const auto a = hn::LoadU(d, rows[0] + i), b = hn::LoadU(d, rows[1] + i);
    const auto c = hn::LoadU(d, rows[2] + i), e = hn::LoadU(d, rows[3] + i);
    const auto ac_low = hn::InterleaveLower(d, a, c), ac_high = hn::InterleaveUpper(d, a, c);
    const auto be_low = hn::InterleaveLower(d, b, e), be_high = hn::InterleaveUpper(d, b, e);
    hn::Store(hn::InterleaveLower(d, ac_low, be_low), d, to + i * kKeyBlock);
    hn::Store(hn::InterleaveUpper(d, ac_low, be_low), d, to + (i + 1) * kKeyBlock);
    hn::Store(hn::InterleaveLower(d, ac_high, be_high), d, to + (i + 2) * kKeyBlock);
    hn::Store(hn::InterleaveUpper(d, ac_high, be_high), d, to + (i + 3) * kKeyBlock);
  }
#endif
  for (; i < width; ++i) {
    for (int j = 0; j < 4; ++j) to[i * kKeyBlock + j] = rows[j][i];
  }
}

// Packs `count` keys from `row` on as [width][kKeyBlock]; absent keys are zero.
HWY_INLINE void PackKeys(const ConstTensorView& key, int64_t row, int count, int head, float* staging, float* to) {
  const int stride = (key.width + ArenaLayout::kMaxLanes - 1) / ArenaLayout::kMaxLanes * ArenaLayout::kMaxLanes;
  for (int j = 0; j < kKeyBlock; j += 4) {
    const float* rows[4];
    for (int k = 0; k < 4; ++k) {
      float* const staged = staging + k * stride;
      rows[k] = staged;
      if (j + k >= count) {
        std::memset(staged, 0, static_cast<size_t>(key.width) * sizeof(float));
      } else if (key.dtype == DType::kFloat32) {
        rows[k] = static_cast<const float*>(key.At(row + j + k, head));
      } else {
        ToFloats(key.At(row + j + k, head), key.dtype, key.width, staged);
      }
    }
    TransposeFourRows(rows, key.width, to + j);
  }
}

// Converts one row and pads it to `stride` floats with zeros. NaN in some lane exactly when an element is not finite:
// the sum of 0 * element.
HWY_INLINE FloatVec PackRow(const void* source, DType dtype, int width, int stride, float* to) {
  const FloatTag d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  ToFloats(source, dtype, width, to);
  std::memset(to + width, 0, static_cast<size_t>(stride - width) * sizeof(float));
  FloatVec poison = hn::Zero(d);
  for (int i = 0; i < stride; i += lanes) poison = hn::MulAdd(hn::Load(d, to + i), hn::Zero(d), poison);
  return poison;
}

// Packs `count` values from `row` on as [kKeyBlock][stride]; padding is zero. False if a value is NaN or infinite.
HWY_INLINE bool PackValues(const ConstTensorView& value, int64_t row, int count, int head, int stride, float* to) {
  const FloatTag d;
  FloatVec poison = hn::Zero(d);
  for (int j = 0; j < count; ++j, to += stride) {
    poison = hn::Add(poison, PackRow(value.At(row + j, head), value.dtype, value.width, stride, to));
  }
  if (count < kKeyBlock) std::memset(to, 0, static_cast<size_t>(kKeyBlock - count) * stride * sizeof(float));
  return hn::AllFalse(d, hn::IsNaN(poison));
}

}  // namespace tessera::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
