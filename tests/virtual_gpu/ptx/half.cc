// Arithmetic on f16, bf16 and pairs of them: computed in float or double, rounded once.
#include "tests/virtual_gpu/ptx/binder.h"
#include "tests/virtual_gpu/ptx/half_float.h"

namespace tessera::vgpu {
namespace {

// A float sum or product of two 16-bit numbers, rounded again to 16 bits, equals one rounding: 24 >= 2 * 11 + 2.
struct Add {
  static TESSERA_VGPU_INLINE float Do(float a, float b) { return a + b; }
};
struct Sub {
  static TESSERA_VGPU_INLINE float Do(float a, float b) { return a - b; }
};
struct Mul {
  static TESSERA_VGPU_INLINE float Do(float a, float b) { return a * b; }
};
struct Fma {
  static TESSERA_VGPU_INLINE float Do(float a, float b, float c) { return HalfFma(a, b, c); }
};
template <bool kNaN>
struct Min {
  static TESSERA_VGPU_INLINE float Do(float a, float b) {
    if (a != a) return kNaN ? a : b;
    if (b != b) return kNaN ? b : a;
    return a < b || (a == b && std::signbit(a)) ? a : b;
  }
};
template <bool kNaN>
struct Max {
  static TESSERA_VGPU_INLINE float Do(float a, float b) {
    if (a != a) return kNaN ? a : b;
    if (b != b) return kNaN ? b : a;
    return a > b || (a == b && !std::signbit(a)) ? a : b;
  }
};
struct Ex2 {
  static TESSERA_VGPU_INLINE float Do(float a) { return std::exp2(a); }
};
struct Tanh {
  static TESSERA_VGPU_INLINE float Do(float a) { return std::tanh(a); }
};

template <class Op>
struct Saturated {
  template <class... T>
  static TESSERA_VGPU_INLINE float Do(T... values) {
    const float r = Op::Do(values...);
    return r > 0.0f ? (r < 1.0f ? r : 1.0f) : 0.0f;
  }
};
template <class Op>
struct Relu {
  template <class... T>
  static TESSERA_VGPU_INLINE float Do(T... values) {
    const float r = Op::Do(values...);
    return r < 0.0f ? 0.0f : r;
  }
};

// Op on both halves of a register.
template <class Op, class H>
struct Both {
  template <class... T>
  static TESSERA_VGPU_INLINE uint32_t Do(T... pairs) {
    return H::Write(Op::Do(H::Read(pairs & 0xffffu)...)) | H::Write(Op::Do(H::Read(pairs >> 16)...)) << 16;
  }
};

template <class Op, class H, int kSources>
Handler Shape(bool packed) {
  using P = Int<uint32_t>;
  if constexpr (kSources == 1) return packed ? Map<Both<Op, H>, P, P>::Pick() : Map<Op, H, H>::Pick();
  if constexpr (kSources == 2) return packed ? Map<Both<Op, H>, P, P, P>::Pick() : Map<Op, H, H, H>::Pick();
  if constexpr (kSources == 3) return packed ? Map<Both<Op, H>, P, P, P, P>::Pick() : Map<Op, H, H, H, H>::Pick();
}

template <class Op, int kSources>
Handler OfType(Binder& b) {
  const Type type = b.LastType();
  const int bits = Bits(type);
  if constexpr (kSources == 1) b.Bind({bits, bits});
  if constexpr (kSources == 2) b.Bind({bits, bits, bits});
  if constexpr (kSources == 3) b.Bind({bits, bits, bits, bits});
  const bool packed = type == Type::kF16x2 || type == Type::kBF16x2;
  if (type == Type::kF16 || type == Type::kF16x2) return Shape<Op, F16, kSources>(packed);
  return Shape<Op, BF16, kSources>(packed);
}

template <class Op, int kSources>
Handler WithModifiers(Binder& b) {
  if (b.Has("sat")) return OfType<Saturated<Op>, kSources>(b);
  if (b.Has("relu")) return OfType<Relu<Op>, kSources>(b);
  return OfType<Op, kSources>(b);
}

// neg and abs only touch the sign bits, of NaN too.
struct FlipSigns {
  template <class T>
  static TESSERA_VGPU_INLINE T Do(T a) {
    return a ^ static_cast<T>(0x80008000u);
  }
};
struct ClearSigns {
  template <class T>
  static TESSERA_VGPU_INLINE T Do(T a) {
    return a & static_cast<T>(0x7fff7fffu);
  }
};

template <class Op>
Handler Signs(Binder& b) {
  const int bits = Bits(b.LastType());
  if (!b.Bind({bits, bits})) return nullptr;
  return bits == 32 ? Map<Op, Int<uint32_t>, Int<uint32_t>>::Pick() : Map<Op, Int<uint16_t>, Int<uint16_t>>::Pick();
}

}  // namespace

Handler BindHalf(Binder& b) {
  const Type type = b.LastType();
  if (type != Type::kF16 && type != Type::kF16x2 && type != Type::kBF16 && type != Type::kBF16x2) return nullptr;
  // Subnormals are flushed by .ftz: of what nvcc emits only the .approx functions carry it, whose f16 results below
  // 2^-14 would differ.
  const std::string_view name = b.Part(0);
  const bool approx = name == "ex2" || name == "tanh";
  if ((b.Has("ftz") && !approx) || b.Has("xorsign") || b.Has("oob")) return nullptr;
  b.out().kind = approx ? InstructionClass::kSpecial : InstructionClass::kFloat;
  if (name == "add") return WithModifiers<Add, 2>(b);
  if (name == "sub") return WithModifiers<Sub, 2>(b);
  if (name == "mul") return WithModifiers<Mul, 2>(b);
  if (name == "fma") return WithModifiers<Fma, 3>(b);
  if (name == "min") return b.Has("NaN") ? OfType<Min<true>, 2>(b) : OfType<Min<false>, 2>(b);
  if (name == "max") return b.Has("NaN") ? OfType<Max<true>, 2>(b) : OfType<Max<false>, 2>(b);
  if (name == "neg") return Signs<FlipSigns>(b);
  if (name == "abs") return Signs<ClearSigns>(b);
  if (name == "ex2") return OfType<Ex2, 1>(b);
  if (name == "tanh") return OfType<Tanh, 1>(b);
  return nullptr;
}

}  // namespace tessera::vgpu
