// 16-bit floating point: conversions and register views. Values are held as float, which is exact.
#pragma once

#include "tests/virtual_gpu/ptx/lanes.h"

namespace tessera::vgpu {

enum class Rounding { kNearest, kZero, kDown, kUp, kNearestAway };

TESSERA_VGPU_INLINE float FromBf16(uint32_t bits) {
  return std::bit_cast<float>(bits << 16);
}

// To nearest even; every NaN becomes 0x7fff, as PTX says of cvt.
TESSERA_VGPU_INLINE uint32_t ToBf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
  return value == value ? rounded : 0x7fffu;
}

TESSERA_VGPU_INLINE float FromF16(uint32_t half) {
  const uint32_t sign = (half & 0x8000u) << 16;
  const uint32_t magnitude = half & 0x7fffu;
  // Normal numbers: shift and move the exponent's bias. Subnormals: units of 2^-24. Infinity and NaN: exponent 255.
  const float normal = std::bit_cast<float>((magnitude << 13) + (112u << 23));
  const float small = static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f;
  const float large = std::bit_cast<float>((magnitude << 13) | 0x7f800000u);
  const float value = magnitude < 0x400u ? small : magnitude >= 0x7c00u ? large : normal;
  return std::bit_cast<float>(std::bit_cast<uint32_t>(value) | sign);
}

TESSERA_VGPU_INLINE uint32_t ToF16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = bits >> 16 & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  // Below 2^-14 the result is subnormal: adding 1/2 aligns its last bit (2^-24) with the last bit of a float in [1/2,
  // 1).
  const float aligned = std::bit_cast<float>(magnitude) + 0.5f;
  const uint32_t small = std::bit_cast<uint32_t>(aligned) - 0x3f000000u;
  const uint32_t normal = (magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1)) >> 13;
  const uint32_t result = magnitude > 0x7f800000u    ? 0x7fffu
                          : magnitude >= 0x477ff000u ? 0x7c00u  // 65520 and above round to infinity
                          : magnitude < 0x38800000u  ? small
                                                     : normal;
  return magnitude > 0x7f800000u ? 0x7fffu : result | sign;
}

struct F16 {
  using Lane = uint32_t;
  using Value = float;
  static TESSERA_VGPU_INLINE float Read(uint32_t lane) { return FromF16(lane & 0xffffu); }
  static TESSERA_VGPU_INLINE uint32_t Write(float value) { return ToF16(value); }
};

struct BF16 {
  using Lane = uint32_t;
  using Value = float;
  static TESSERA_VGPU_INLINE float Read(uint32_t lane) { return FromBf16(lane & 0xffffu); }
  static TESSERA_VGPU_INLINE uint32_t Write(float value) { return ToBf16(value); }
};

// The sum rounded to odd: rounding it again to a narrower type gives what one rounding of the exact sum gives.
TESSERA_VGPU_INLINE double SumToOdd(double a, double b) {
  const double sum = a + b;
  const double from_b = sum - a;
  const double error = (a - (sum - from_b)) + (b - from_b);
  const int64_t bits = std::bit_cast<int64_t>(sum);
  const bool inexact = error != 0.0 && (bits & 1) == 0 && error == error;
  // Away from zero when the error has the sum's sign, towards it otherwise.
  const int64_t step = (error > 0.0) == (sum > 0.0) ? 1 : -1;
  return inexact ? std::bit_cast<double>(bits + step) : sum;
}

// A double rounded to odd to float's precision, so that a second rounding to 16 bits is right.
TESSERA_VGPU_INLINE float ToFloatOdd(double value) {
  const float nearest = static_cast<float>(value);
  const uint32_t bits = std::bit_cast<uint32_t>(nearest);
  const double back = nearest;
  const bool inexact = back != value && (bits & 1) == 0 && value == value && (bits & 0x7f800000u) != 0x7f800000u;
  const bool larger = std::fabs(value) > std::fabs(back);
  return inexact ? std::bit_cast<float>(bits + (larger ? 1u : ~0u)) : nearest;
}

// a * b + c rounded once to 16 bits; the product of two 16-bit numbers is exact in double.
TESSERA_VGPU_INLINE float HalfFma(float a, float b, float c) {
  return ToFloatOdd(SumToOdd(static_cast<double>(a) * static_cast<double>(b), static_cast<double>(c)));
}

}  // namespace tessera::vgpu
