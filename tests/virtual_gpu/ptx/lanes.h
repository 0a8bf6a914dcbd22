// Element-wise instructions: how a register's bits are read and written as a type, and loops over 32 lanes that
// vectorise. Every loop exists twice: for the baseline and for x86-64-v3 (AVX2, FMA), where fused multiply-add is one
// instruction instead of a library call; the choice is made when a kernel is decoded.
#pragma once

#include <bit>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "tests/virtual_gpu/ptx/warp.h"

#if defined(__x86_64__)
#include <emmintrin.h>
#define TESSERA_VGPU_V3 __attribute__((target("avx2,fma,f16c,bmi,bmi2,lzcnt,popcnt")))
#else
#define TESSERA_VGPU_V3
#endif
#define TESSERA_VGPU_INLINE inline __attribute__((always_inline))

namespace tessera::vgpu {

bool HasV3();

// A view of a lane's bits: Lane is what a register holds, Value what operations see.
template <class T>
struct Int {
  using Lane = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
  using Value = T;
  static TESSERA_VGPU_INLINE T Read(Lane lane) { return static_cast<T>(lane); }
  static TESSERA_VGPU_INLINE Lane Write(T value) { return static_cast<std::make_unsigned_t<T>>(value); }
};

struct Pred {  // 0 or ~0
  using Lane = uint32_t;
  using Value = uint32_t;
  static TESSERA_VGPU_INLINE uint32_t Read(uint32_t lane) { return lane; }
  static TESSERA_VGPU_INLINE uint32_t Write(uint32_t value) { return value; }
};

TESSERA_VGPU_INLINE float Flush(float value) {  // subnormals to zero of the same sign
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  return (bits & 0x7f800000u) == 0 ? std::bit_cast<float>(bits & 0x80000000u) : value;
}

template <bool kFlush, bool kSaturate = false>
struct F32 {
  using Lane = uint32_t;
  using Value = float;
  static TESSERA_VGPU_INLINE float Read(uint32_t lane) {
    const float value = std::bit_cast<float>(lane);
    return kFlush ? Flush(value) : value;
  }
  static TESSERA_VGPU_INLINE uint32_t Write(float value) {
    if (kFlush) value = Flush(value);
    if (kSaturate) value = value > 0.0f ? (value < 1.0f ? value : 1.0f) : 0.0f;  // NaN becomes +0
    return std::bit_cast<uint32_t>(value);
  }
};

struct F64 {
  using Lane = uint64_t;
  using Value = double;
  static TESSERA_VGPU_INLINE double Read(uint64_t lane) { return std::bit_cast<double>(lane); }
  static TESSERA_VGPU_INLINE uint64_t Write(double value) { return std::bit_cast<uint64_t>(value); }
};

// The lanes of a predicate register, as bits.
inline uint32_t PredicateBits(const uint32_t* predicate) {
#if defined(__x86_64__)
  uint32_t bits = 0;
  for (int half = 0; half < 2; ++half) {
    const auto* from = reinterpret_cast<const __m128i*>(predicate + 16 * half);
    const __m128i low = _mm_packs_epi32(_mm_load_si128(from), _mm_load_si128(from + 1));
    const __m128i high = _mm_packs_epi32(_mm_load_si128(from + 2), _mm_load_si128(from + 3));
    bits |= static_cast<uint32_t>(_mm_movemask_epi8(_mm_packs_epi16(low, high))) << (16 * half);
  }
  return bits;
#else
  uint32_t bits = 0;
  for (int l = 0; l < kLanes; ++l) bits |= (predicate[l] & 1) << l;
  return bits;
#endif
}

// Where lanes are written under a mask, the others keep their bits.
template <class Lane>
TESSERA_VGPU_INLINE void Blend(Lane* to, const Lane* from, uint32_t lanes) {
  if (lanes == kAllLanes) {
    std::memcpy(to, from, sizeof(Lane) * kLanes);
    return;
  }
  for (int l = 0; l < kLanes; ++l) to[l] = (lanes >> l & 1) != 0 ? from[l] : to[l];
}

// Op::Do(values...) of sources A, B, C to a result D, all views.
template <class Op, class D, class A>
TESSERA_VGPU_INLINE Signal Body1(const Instruction& i, Warp& w, uint32_t lanes) {
  const auto* a = w.Read<typename A::Lane>(i.operand[1]);
  alignas(64) typename D::Lane out[kLanes];
  for (int l = 0; l < kLanes; ++l) out[l] = D::Write(Op::Do(A::Read(a[l])));
  Blend(w.Write<typename D::Lane>(i.operand[0]), out, lanes);
  return Signal::kNext;
}

template <class Op, class D, class A, class B>
TESSERA_VGPU_INLINE Signal Body2(const Instruction& i, Warp& w, uint32_t lanes) {
  const auto* a = w.Read<typename A::Lane>(i.operand[1]);
  const auto* b = w.Read<typename B::Lane>(i.operand[2]);
  alignas(64) typename D::Lane out[kLanes];
  for (int l = 0; l < kLanes; ++l) out[l] = D::Write(Op::Do(A::Read(a[l]), B::Read(b[l])));
  Blend(w.Write<typename D::Lane>(i.operand[0]), out, lanes);
  return Signal::kNext;
}

template <class Op, class D, class A, class B, class C>
TESSERA_VGPU_INLINE Signal Body3(const Instruction& i, Warp& w, uint32_t lanes) {
  const auto* a = w.Read<typename A::Lane>(i.operand[1]);
  const auto* b = w.Read<typename B::Lane>(i.operand[2]);
  const auto* c = w.Read<typename C::Lane>(i.operand[3]);
  alignas(64) typename D::Lane out[kLanes];
  for (int l = 0; l < kLanes; ++l) out[l] = D::Write(Op::Do(A::Read(a[l]), B::Read(b[l]), C::Read(c[l])));
  Blend(w.Write<typename D::Lane>(i.operand[0]), out, lanes);
  return Signal::kNext;
}

template <class Op, class D, class... Sources>
struct Map {
  static TESSERA_VGPU_INLINE Signal Body(const Instruction& i, Warp& w, uint32_t lanes) {
    if constexpr (sizeof...(Sources) == 1) return Body1<Op, D, Sources...>(i, w, lanes);
    if constexpr (sizeof...(Sources) == 2) return Body2<Op, D, Sources...>(i, w, lanes);
    if constexpr (sizeof...(Sources) == 3) return Body3<Op, D, Sources...>(i, w, lanes);
  }
  static Signal Baseline(const Instruction& i, Warp& w, uint32_t lanes) { return Body(i, w, lanes); }
  static TESSERA_VGPU_V3 Signal V3(const Instruction& i, Warp& w, uint32_t lanes) { return Body(i, w, lanes); }
  static Handler Pick() { return HasV3() ? &V3 : &Baseline; }
};

}  // namespace tessera::vgpu
