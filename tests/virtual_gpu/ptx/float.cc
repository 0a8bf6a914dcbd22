// Single and double precision arithmetic. The compiler is told not to contract, so that each result is rounded once.
#include <cfenv>

#include "tests/virtual_gpu/ptx/binder.h"

namespace tessera::vgpu {
namespace {

struct Add {
  template <class T>
  static TESSERA_VGPU_INLINE T Do(T a, T b) {
    return a + b;
  }
};
struct Sub {
  template <class T>
  static TESSERA_VGPU_INLINE T Do(T a, T b) {
    return a - b;
  }
};
struct Mul {
  template <class T>
  static TESSERA_VGPU_INLINE T Do(T a, T b) {
    return a * b;
  }
};
struct Fma {
  static TESSERA_VGPU_INLINE float Do(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
  static TESSERA_VGPU_INLINE double Do(double a, double b, double c) { return __builtin_fma(a, b, c); }
};
// A NaN loses against a number unless .NaN asks for it; -0 is below +0.
template <bool kNaN>
struct Min {
  template <class T>
  static TESSERA_VGPU_INLINE T Do(T a, T b) {
    if (a != a) return kNaN ? a : b;
    if (b != b) return kNaN ? b : a;
    return a < b || (a == b && std::signbit(a)) ? a : b;
  }
};
template <bool kNaN>
struct Max {
  template <class T>
  static TESSERA_VGPU_INLINE T Do(T a, T b) {
    if (a != a) return kNaN ? a : b;
    if (b != b) return kNaN ? b : a;
    return a > b || (a == b && !std::signbit(a)) ? a : b;
  }
};
struct Neg {
  static TESSERA_VGPU_INLINE float Do(float a) {
    return std::bit_cast<float>(std::bit_cast<uint32_t>(a) ^ 0x80000000u);
  }
  static TESSERA_VGPU_INLINE double Do(double a) {
    return std::bit_cast<double>(std::bit_cast<uint64_t>(a) ^ 0x8000000000000000u);
  }
};
struct Abs {
  template <class T>
  static TESSERA_VGPU_INLINE T Do(T a) {
    return std::fabs(a);
  }
};
struct CopySign {  // the sign of a, the magnitude of b
  template <class T>
  static TESSERA_VGPU_INLINE T Do(T a, T b) {
    return std::copysign(b, a);
  }
};
struct Div {
  template <class T>
  static TESSERA_VGPU_INLINE T Do(T a, T b) {
    return a / b;
  }
};

// Directed roundings are rare: lane by lane under the host's rounding mode, kept apart from the optimiser.
template <class T>
__attribute__((noinline)) T Directed(int mode, char op, T a, T b, T c) {
  const int before = std::fegetround();
  std::fesetround(mode);
  volatile T x = a, y = b, z = c;
  volatile T result = op == '+'   ? x + y
                      : op == '-' ? x - y
                      : op == '*' ? x * y
                      : op == '/' ? x / y
                                  : std::fma(T{x}, T{y}, T{z});
  std::fesetround(before);
  return result;
}

template <class V>
Signal DirectedOp(const Instruction& i, Warp& w, uint32_t lanes) {
  using Lane = typename V::Lane;
  const Lane* a = w.Read<Lane>(i.operand[1]);
  const Lane* b = w.Read<Lane>(i.operand[2]);
  const Lane* c = w.Read<Lane>(i.operand[i.operand_count > 3 ? 3 : 2]);
  Lane out[kLanes];
  for (int l = 0; l < kLanes; ++l) {
    out[l] = V::Write(Directed(static_cast<int>(i.immediate), static_cast<char>(i.small), V::Read(a[l]), V::Read(b[l]),
                               V::Read(c[l])));
  }
  Blend(w.Write<Lane>(i.operand[0]), out, lanes);
  return Signal::kNext;
}

int HostRounding(const Binder& b) {
  return b.Has("rz") ? FE_TOWARDZERO : b.Has("rm") ? FE_DOWNWARD : b.Has("rp") ? FE_UPWARD : FE_TONEAREST;
}

template <class Op, int kSources, class D, class S>
Handler Shape() {
  if constexpr (kSources == 1) return Map<Op, D, S>::Pick();
  if constexpr (kSources == 2) return Map<Op, D, S, S>::Pick();
  if constexpr (kSources == 3) return Map<Op, D, S, S, S>::Pick();
}

template <class Op, int kSources>
Handler BindArithmetic(Binder& b, char op = 0) {
  const Type type = b.LastType();
  const int bits = Bits(type);
  if constexpr (kSources == 1) b.Bind({bits, bits});
  if constexpr (kSources == 2) b.Bind({bits, bits, bits});
  if constexpr (kSources == 3) b.Bind({bits, bits, bits, bits});
  const bool ftz = b.Has("ftz"), sat = b.Has("sat");
  if (const int mode = HostRounding(b); mode != FE_TONEAREST) {
    if (op == 0) return nullptr;
    b.out().immediate = mode;
    b.out().small = static_cast<uint8_t>(op);
    if (type == Type::kF64) return &DirectedOp<F64>;
    if (sat) return ftz ? &DirectedOp<F32<true, true>> : &DirectedOp<F32<false, true>>;
    return ftz ? &DirectedOp<F32<true>> : &DirectedOp<F32<false>>;
  }
  if (type == Type::kF64) return sat ? nullptr : Shape<Op, kSources, F64, F64>();
  if (sat) {
    return ftz ? Shape<Op, kSources, F32<true, true>, F32<true>>()
               : Shape<Op, kSources, F32<false, true>, F32<false>>();
  }
  return ftz ? Shape<Op, kSources, F32<true>, F32<true>>() : Shape<Op, kSources, F32<false>, F32<false>>();
}

}  // namespace

Handler BindFloat(Binder& b) {
  const std::string_view name = b.Part(0);
  const Type type = b.LastType();
  if (type != Type::kF32 && type != Type::kF64) return nullptr;
  b.out().kind = InstructionClass::kFloat;
  if (name == "add") return BindArithmetic<Add, 2>(b, '+');
  if (name == "sub") return BindArithmetic<Sub, 2>(b, '-');
  if (name == "mul") return BindArithmetic<Mul, 2>(b, '*');
  if (name == "fma" || name == "mad") return BindArithmetic<Fma, 3>(b, 'f');
  if ((name == "min" || name == "max") && (b.Has("xorsign") || b.Operands() != 3)) return nullptr;
  if (name == "min") return b.Has("NaN") ? BindArithmetic<Min<true>, 2>(b) : BindArithmetic<Min<false>, 2>(b);
  if (name == "max") return b.Has("NaN") ? BindArithmetic<Max<true>, 2>(b) : BindArithmetic<Max<false>, 2>(b);
  if (name == "neg") return BindArithmetic<Neg, 1>(b);
  if (name == "abs") return BindArithmetic<Abs, 1>(b);
  if (name == "copysign") return BindArithmetic<CopySign, 2>(b);
  if (name == "div") {  // .approx and .full allow 2 ulp; they get the rounded quotient
    b.out().kind = InstructionClass::kSpecial;
    return BindArithmetic<Div, 2>(b, '/');
  }
  return nullptr;
}

}  // namespace tessera::vgpu
