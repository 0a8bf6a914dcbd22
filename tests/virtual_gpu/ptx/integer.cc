// Integer arithmetic.
#include <limits>

#include "tests/virtual_gpu/ptx/binder.h"

namespace tessera::vgpu {
namespace {

// Sums wrap: computed in an unsigned type at least as wide as int, where that is defined.
template <class T>
using Wrap = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;

struct Add {
  template <class T>
  static TESSERA_VGPU_INLINE T Do(T a, T b) {
    return static_cast<T>(static_cast<Wrap<T>>(a) + static_cast<Wrap<T>>(b));
  }
};
struct Sub {
  template <class T>
  static TESSERA_VGPU_INLINE T Do(T a, T b) {
    return static_cast<T>(static_cast<Wrap<T>>(a) - static_cast<Wrap<T>>(b));
  }
};
struct MulLow {
  template <class T>
  static TESSERA_VGPU_INLINE T Do(T a, T b) {
    return static_cast<T>(static_cast<Wrap<T>>(a) * static_cast<Wrap<T>>(b));
  }
};
struct MadLow {
  template <class T>
  static TESSERA_VGPU_INLINE T Do(T a, T b, T c) {
    return Add::Do(MulLow::Do(a, b), c);
  }
};
template <class W>
struct MulWide {
  template <class T>
  static TESSERA_VGPU_INLINE W Do(T a, T b) {
    return static_cast<W>(a) * static_cast<W>(b);
  }
};
template <class W>
struct MadWide {
  template <class T>
  static TESSERA_VGPU_INLINE W Do(T a, T b, W c) {
    return Add::Do(static_cast<W>(static_cast<W>(a) * static_cast<W>(b)), c);
  }
};
struct MulHigh {
  template <class T>
  static TESSERA_VGPU_INLINE T Do(T a, T b) {
    if constexpr (sizeof(T) == 8) {
      using W = std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>;
      return static_cast<T>(static_cast<W>(a) * static_cast<W>(b) >> 64);
    } else {
      using W = std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>;
      return static_cast<T>(static_cast<W>(a) * static_cast<W>(b) >> (8 * sizeof(T)));
    }
  }
};
struct MadHigh {
  template <class T>
  static TESSERA_VGPU_INLINE T Do(T a, T b, T c) {
    return Add::Do(MulHigh::Do(a, b), c);
  }
};
// The low 24 bits of each, sign-extended for s32; .lo gives bits 0 to 31 of the 48-bit product, .hi bits 16 to 47.
template <bool kHigh>
struct Mul24 {
  template <class T>
  static TESSERA_VGPU_INLINE T Do(T a, T b) {
    using W = std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>;
    const T x = static_cast<T>(static_cast<uint32_t>(a) << 8) >> 8,
            y = static_cast<T>(static_cast<uint32_t>(b) << 8) >> 8;
    return static_cast<T>((static_cast<W>(x) * static_cast<W>(y)) >> (kHigh ? 16 : 0));
  }
};
template <bool kHigh>
struct Mad24 {
  template <class T>
  static TESSERA_VGPU_INLINE T Do(T a, T b, T c) {
    return Add::Do(Mul24<kHigh>::Do(a, b), c);
  }
};
// Division by zero is unspecified in PTX; hardware gives all ones for unsigned, and so do we for both.
struct Div {
  template <class T>
  static TESSERA_VGPU_INLINE T Do(T a, T b) {
    if (b == 0) return static_cast<T>(-1);
    if (std::is_signed_v<T> && b == static_cast<T>(-1)) return Sub::Do(T{0}, a);
    return static_cast<T>(a / b);
  }
};
struct Rem {
  template <class T>
  static TESSERA_VGPU_INLINE T Do(T a, T b) {
    if (b == 0) return a;
    if (std::is_signed_v<T> && b == static_cast<T>(-1)) return 0;
    return static_cast<T>(a % b);
  }
};
struct Min {
  template <class T>
  static TESSERA_VGPU_INLINE T Do(T a, T b) {
    return a < b ? a : b;
  }
};
struct Max {
  template <class T>
  static TESSERA_VGPU_INLINE T Do(T a, T b) {
    return a < b ? b : a;
  }
};
struct Neg {
  template <class T>
  static TESSERA_VGPU_INLINE T Do(T a) {
    return Sub::Do(T{0}, a);
  }
};
struct Abs {
  template <class T>
  static TESSERA_VGPU_INLINE T Do(T a) {
    return a < 0 ? Sub::Do(T{0}, a) : a;
  }
};
struct AddSat {
  static TESSERA_VGPU_INLINE int32_t Do(int32_t a, int32_t b) { return Clamp(int64_t{a} + b); }
  static TESSERA_VGPU_INLINE int32_t Clamp(int64_t v) {
    constexpr int64_t kLow = std::numeric_limits<int32_t>::min(), kHigh = std::numeric_limits<int32_t>::max();
    return static_cast<int32_t>(v < kLow ? kLow : v > kHigh ? kHigh : v);
  }
};
struct SubSat {
  static TESSERA_VGPU_INLINE int32_t Do(int32_t a, int32_t b) { return AddSat::Clamp(int64_t{a} - b); }
};
struct Sad {  // c + |a - b|
  template <class T>
  static TESSERA_VGPU_INLINE T Do(T a, T b, T c) {
    return Add::Do(c, a < b ? Sub::Do(b, a) : Sub::Do(a, b));
  }
};

template <class Op, class T, int kSources>
Handler Same() {
  using V = Int<T>;
  if constexpr (kSources == 1) return Map<Op, V, V>::Pick();
  if constexpr (kSources == 2) return Map<Op, V, V, V>::Pick();
  if constexpr (kSources == 3) return Map<Op, V, V, V, V>::Pick();
}

// One type for the result and all sources.
template <class Op, int kSources>
Handler BindSame(Binder& b, Type type) {
  const int bits = Bits(type);
  if constexpr (kSources == 1) b.Bind({bits, bits});
  if constexpr (kSources == 2) b.Bind({bits, bits, bits});
  if constexpr (kSources == 3) b.Bind({bits, bits, bits, bits});
  switch (type) {
    case Type::kS16:
      return Same<Op, int16_t, kSources>();
    case Type::kU16:
      return Same<Op, uint16_t, kSources>();
    case Type::kS32:
      return Same<Op, int32_t, kSources>();
    case Type::kU32:
      return Same<Op, uint32_t, kSources>();
    case Type::kS64:
      return Same<Op, int64_t, kSources>();
    case Type::kU64:
      return Same<Op, uint64_t, kSources>();
    default:
      return nullptr;
  }
}

template <template <class> class Op, bool kAdd>
Handler BindWide(Binder& b, Type type) {
  const int bits = Bits(type);
  if (kAdd) {
    b.Bind({2 * bits, bits, bits, 2 * bits});
  } else {
    b.Bind({2 * bits, bits, bits});
  }
  const auto pick = [](auto narrow, auto wide) {
    using V = Int<decltype(narrow)>;
    using W = Int<decltype(wide)>;
    if constexpr (kAdd) return Map<Op<decltype(wide)>, W, V, V, W>::Pick();
    if constexpr (!kAdd) return Map<Op<decltype(wide)>, W, V, V>::Pick();
  };
  switch (type) {
    case Type::kS16:
      return pick(int16_t{}, int32_t{});
    case Type::kU16:
      return pick(uint16_t{}, uint32_t{});
    case Type::kS32:
      return pick(int32_t{}, int64_t{});
    case Type::kU32:
      return pick(uint32_t{}, uint64_t{});
    default:
      return nullptr;
  }
}

template <class Op, int kSources>
Handler Bind24(Binder& b, Type type) {
  return Bits(type) == 32 ? BindSame<Op, kSources>(b, type) : nullptr;
}

}  // namespace

Handler BindInteger(Binder& b) {
  const std::string_view name = b.Part(0);
  const Type type = b.LastType();
  if (IsFloat(type)) return nullptr;
  b.out().kind = InstructionClass::kInteger;
  const std::string_view half = b.Part(1);  // lo, hi, wide
  if (name == "add" && b.Has("sat"))
    return type == Type::kS32 && b.Bind({32, 32, 32}) ? Map<AddSat, Int<int32_t>, Int<int32_t>, Int<int32_t>>::Pick()
                                                      : nullptr;
  if (name == "sub" && b.Has("sat"))
    return type == Type::kS32 && b.Bind({32, 32, 32}) ? Map<SubSat, Int<int32_t>, Int<int32_t>, Int<int32_t>>::Pick()
                                                      : nullptr;
  if (b.Has("sat") || b.Has("cc")) return nullptr;
  if (name == "add") return BindSame<Add, 2>(b, type);
  if (name == "sub") return BindSame<Sub, 2>(b, type);
  if (name == "mul" && half == "lo") return BindSame<MulLow, 2>(b, type);
  if (name == "mul" && half == "hi") return BindSame<MulHigh, 2>(b, type);
  if (name == "mul" && half == "wide") return BindWide<MulWide, false>(b, type);
  if (name == "mad" && half == "lo") return BindSame<MadLow, 3>(b, type);
  if (name == "mad" && half == "hi") return BindSame<MadHigh, 3>(b, type);
  if (name == "mad" && half == "wide") return BindWide<MadWide, true>(b, type);
  if (name == "mul24") return half == "hi" ? Bind24<Mul24<true>, 2>(b, type) : Bind24<Mul24<false>, 2>(b, type);
  if (name == "mad24") return half == "hi" ? Bind24<Mad24<true>, 3>(b, type) : Bind24<Mad24<false>, 3>(b, type);
  if (name == "div") return BindSame<Div, 2>(b, type);
  if (name == "rem") return BindSame<Rem, 2>(b, type);
  if (b.Has("relu")) return nullptr;
  if (name == "min") return BindSame<Min, 2>(b, type);
  if (name == "max") return BindSame<Max, 2>(b, type);
  if (name == "neg") return IsSigned(type) ? BindSame<Neg, 1>(b, type) : nullptr;
  if (name == "abs") return IsSigned(type) ? BindSame<Abs, 1>(b, type) : nullptr;
  if (name == "sad") return BindSame<Sad, 3>(b, type);
  return nullptr;
}

}  // namespace tessera::vgpu
