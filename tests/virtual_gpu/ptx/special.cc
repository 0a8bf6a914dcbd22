// Special functions. The .approx forms of hardware have errors of about 2 ulp that are not published bit by bit; here
// they are computed in double and rounded once, so they are at least as accurate.
#include "tests/virtual_gpu/ptx/binder.h"

namespace tessera::vgpu {
namespace {

// 2^x for |x| <= 1/2 by its Taylor series in double: the first term left out, (x ln 2)^10 / 10!, is below 8e-12.
TESSERA_VGPU_INLINE double Exp2Fraction(double x) {
  const double y = x * 0.69314718055994530942;
  double sum = 1.0 / 362880;
  constexpr double kCoefficients[] = {1.0 / 40320, 1.0 / 5040, 1.0 / 720, 1.0 / 120, 1.0 / 24, 1.0 / 6, 0.5, 1.0, 1.0};
  for (double c : kCoefficients) sum = sum * y + c;
  return sum;
}

struct Ex2 {
  // Vectorises: no calls and no branches. Results below 2^-149 are 0, above the range infinity, NaN stays NaN.
  static TESSERA_VGPU_INLINE float Do(float a) {
    const double x = a;
    const double clamped = x > 200.0 ? 200.0 : x < -200.0 ? -200.0 : x == x ? x : 0.0;
    constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52: adding it leaves the nearest integer in the low bits
    const double shifted = clamped + kRound;
    const double whole = shifted - kRound;
    const int64_t exponent = std::bit_cast<int64_t>(shifted) - std::bit_cast<int64_t>(kRound);
    const double scale = std::bit_cast<double>((exponent + 1023) << 52);
    const double result = Exp2Fraction(clamped - whole) * scale;
    return x == x ? static_cast<float>(result) : a;
  }
};
struct Lg2 {
  static TESSERA_VGPU_INLINE float Do(float a) { return static_cast<float>(std::log2(static_cast<double>(a))); }
};
struct Rcp {
  template <class T>
  static TESSERA_VGPU_INLINE T Do(T a) {
    return T{1} / a;
  }
};
struct Sqrt {
  template <class T>
  static TESSERA_VGPU_INLINE T Do(T a) {
    return std::sqrt(a);
  }
};
struct Rsqrt {
  template <class T>
  static TESSERA_VGPU_INLINE T Do(T a) {
    return static_cast<T>(1.0 / std::sqrt(static_cast<double>(a)));
  }
};
struct Sin {
  static TESSERA_VGPU_INLINE float Do(float a) { return static_cast<float>(std::sin(static_cast<double>(a))); }
};
struct Cos {
  static TESSERA_VGPU_INLINE float Do(float a) { return static_cast<float>(std::cos(static_cast<double>(a))); }
};
struct Tanh {
  static TESSERA_VGPU_INLINE float Do(float a) { return static_cast<float>(std::tanh(static_cast<double>(a))); }
};

template <class Op>
Handler Single(Binder& b) {
  if (b.LastType() != Type::kF32 || !b.Bind({32, 32})) return nullptr;
  return b.Has("ftz") ? Map<Op, F32<true>, F32<true>>::Pick() : Map<Op, F32<false>, F32<false>>::Pick();
}

template <class Op>
Handler SingleOrDouble(Binder& b) {
  if (b.Has("rz") || b.Has("rm") || b.Has("rp")) return nullptr;
  if (b.LastType() != Type::kF64) return Single<Op>(b);
  return b.Bind({64, 64}) ? Map<Op, F64, F64>::Pick() : nullptr;
}

}  // namespace

Handler BindSpecial(Binder& b) {
  const std::string_view name = b.Part(0);
  b.out().kind = InstructionClass::kSpecial;
  if (name == "ex2") return Single<Ex2>(b);
  if (name == "lg2") return Single<Lg2>(b);
  if (name == "rcp") return SingleOrDouble<Rcp>(b);
  if (name == "sqrt") return SingleOrDouble<Sqrt>(b);
  if (name == "rsqrt") return SingleOrDouble<Rsqrt>(b);
  if (name == "sin") return Single<Sin>(b);
  if (name == "cos") return Single<Cos>(b);
  if (name == "tanh") return Single<Tanh>(b);
  return nullptr;
}

}  // namespace tessera::vgpu
