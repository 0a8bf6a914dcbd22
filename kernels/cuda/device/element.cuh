// The two 16-bit element types and the instructions that differ between them.
#pragma once

#include <cstdint>

namespace tessera::cuda {

struct BFloat16 {
  // Two floats rounded to nearest even, `low` in the lower half.
  static __device__ uint32_t Pack(float low, float high) {
    uint32_t packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
  }
  static __device__ float ToFloat(uint16_t bits) { return __uint_as_float(uint32_t{bits} << 16); }
  // Any exponent of ones in either half of two elements.
  static __device__ bool AnyNonFinite(uint32_t pair) {
    return (pair & 0x7f80u) == 0x7f80u || (pair & 0x7f800000u) == 0x7f800000u;
  }
};

struct Float16 {
  static __device__ uint32_t Pack(float low, float high) {
    uint32_t packed;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
  }
  static __device__ float ToFloat(uint16_t bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
  }
  static __device__ bool AnyNonFinite(uint32_t pair) {
    return (pair & 0x7c00u) == 0x7c00u || (pair & 0x7c000000u) == 0x7c000000u;
  }
};

// Two accumulators of m16n8 side by side, rounded: in the same lanes they are one left operand of m16k16.
template <typename Element>
static __device__ __forceinline__ void PackOperand(const float (&left)[4], const float (&right)[4],
                                                   uint32_t (&operand)[4]) {
  operand[0] = Element::Pack(left[0], left[1]);
  operand[1] = Element::Pack(left[2], left[3]);
  operand[2] = Element::Pack(right[0], right[1]);
  operand[3] = Element::Pack(right[2], right[3]);
}

// 2^x, flushing subnormals: one instruction, relative error below 2^-22 (PTX ISA, ex2.approx).
static __device__ __forceinline__ float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

inline constexpr float kLog2E = 1.4426950408889634f;
inline constexpr float kLn2 = 0.6931471805599453f;

}  // namespace tessera::cuda
