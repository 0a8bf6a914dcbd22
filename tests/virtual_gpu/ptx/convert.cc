// cvt: the frequent forms vectorise, the others go lane by lane through one description of their steps.
#include <limits>

#include "tests/virtual_gpu/ptx/binder.h"
#include "tests/virtual_gpu/ptx/half_float.h"

namespace tessera::vgpu {
namespace {

struct Modes {
  Type to = Type::kNone, from = Type::kNone;
  Rounding rounding = Rounding::kNearest;
  bool integral = false;  // .rni and kin: float to a float that is an integer
  bool ftz = false, sat = false, relu = false, satfinite = false;
  int to_register = 32;  // width of the result's register; integers are extended into it
  int from_register = 32;
};

// Packed into the instruction: 5 bits per type, then flags.
uint32_t Pack(const Modes& m) {
  return static_cast<uint32_t>(m.to) | static_cast<uint32_t>(m.from) << 5 | static_cast<uint32_t>(m.rounding) << 10 |
         m.integral << 13 | m.ftz << 14 | m.sat << 15 | m.relu << 16 | m.satfinite << 17 | (m.to_register == 64) << 18 |
         (m.from_register == 64) << 19;
}
Modes Unpack(uint32_t f) {
  Modes m;
  m.to = static_cast<Type>(f & 31);
  m.from = static_cast<Type>(f >> 5 & 31);
  m.rounding = static_cast<Rounding>(f >> 10 & 7);
  m.integral = f >> 13 & 1;
  m.ftz = f >> 14 & 1;
  m.sat = f >> 15 & 1;
  m.relu = f >> 16 & 1;
  m.satfinite = f >> 17 & 1;
  m.to_register = (f >> 18 & 1) != 0 ? 64 : 32;
  m.from_register = (f >> 19 & 1) != 0 ? 64 : 32;
  return m;
}

double RoundIntegral(double value, Rounding rounding) {
  switch (rounding) {
    case Rounding::kNearest:
      return std::nearbyint(value);
    case Rounding::kZero:
      return std::trunc(value);
    case Rounding::kDown:
      return std::floor(value);
    case Rounding::kUp:
      return std::ceil(value);
    case Rounding::kNearestAway:
      return std::round(value);
  }
  return value;
}

// value, whose exact part beyond it is `rest` (for 64-bit integers), rounded to `digits` binary digits with the least
// exponent of a subnormal's last digit `least`; above `largest` it overflows.
double RoundTo(double value, int digits, int least, double largest, Rounding rounding) {
  if (value == 0 || !std::isfinite(value)) return value;
  const int last = std::max(std::ilogb(value) - digits + 1, least);
  const double rounded = std::ldexp(RoundIntegral(std::ldexp(value, -last), rounding), last);
  if (std::fabs(rounded) <= largest) return rounded;
  const bool up = rounding == Rounding::kNearest || rounding == Rounding::kNearestAway ||
                  (rounding == Rounding::kUp && value > 0) || (rounding == Rounding::kDown && value < 0);
  return std::copysign(up ? std::numeric_limits<double>::infinity() : largest, value);
}

constexpr double kLargestBf16 = 0x1.fep127, kLargestF16 = 65504.0;
constexpr double kLargestFloat = std::numeric_limits<float>::max();

// fp8: 1 sign, exponent bits, mantissa bits; e4m3 has no infinity and one NaN (0x7f).
uint32_t ToFp8(double value, bool e4m3, bool relu) {
  const uint32_t nan = 0x7f;
  if (std::isnan(value)) return nan;
  if (relu && value < 0) value = 0;
  const double largest = e4m3 ? 448.0 : 57344.0;
  const int mantissa = e4m3 ? 3 : 2, bias = e4m3 ? 7 : 15;
  const uint32_t sign = std::signbit(value) ? 0x80 : 0;
  double r = RoundTo(std::fabs(value), mantissa + 1, 1 - bias - mantissa, largest, Rounding::kNearest);
  if (r > largest) r = largest;  // .satfinite, which these forms require
  if (r == 0) return sign;
  const int exponent = std::ilogb(r);
  if (exponent < 1 - bias) return sign | static_cast<uint32_t>(std::ldexp(r, bias - 1 + mantissa));
  const uint32_t fraction = static_cast<uint32_t>(std::ldexp(r, mantissa - exponent)) - (1u << mantissa);
  return sign | static_cast<uint32_t>(exponent + bias) << mantissa | fraction;
}
double FromFp8(uint32_t bits, bool e4m3) {
  const int mantissa = e4m3 ? 3 : 2, bias = e4m3 ? 7 : 15;
  const uint32_t exponent = (bits & 0x7f) >> mantissa, fraction = bits & ((1u << mantissa) - 1);
  double value = 0;
  if (e4m3 && (bits & 0x7f) == 0x7f) {
    value = std::numeric_limits<double>::quiet_NaN();
  } else if (!e4m3 && exponent == 31) {
    value = fraction != 0 ? std::numeric_limits<double>::quiet_NaN() : std::numeric_limits<double>::infinity();
  } else if (exponent == 0) {
    value = std::ldexp(fraction, 1 - bias - mantissa);
  } else {
    value = std::ldexp(fraction + (1u << mantissa), static_cast<int>(exponent) - bias - mantissa);
  }
  return (bits & 0x80) != 0 ? -value : value;
}

struct Number {  // one of the two
  bool is_float = false;
  double real = 0;
  __int128 integer = 0;
};

Number Decode(uint64_t bits, Type type, bool ftz) {
  Number n;
  switch (type) {
    case Type::kU8:
      n.integer = static_cast<uint8_t>(bits);
      break;
    case Type::kU16:
      n.integer = static_cast<uint16_t>(bits);
      break;
    case Type::kU32:
      n.integer = static_cast<uint32_t>(bits);
      break;
    case Type::kU64:
      n.integer = bits;
      break;
    case Type::kS8:
      n.integer = static_cast<int8_t>(bits);
      break;
    case Type::kS16:
      n.integer = static_cast<int16_t>(bits);
      break;
    case Type::kS32:
      n.integer = static_cast<int32_t>(bits);
      break;
    case Type::kS64:
      n.integer = static_cast<int64_t>(bits);
      break;
    default:
      n.is_float = true;
      if (type == Type::kF16) n.real = FromF16(bits & 0xffff);
      if (type == Type::kBF16) n.real = FromBf16(bits & 0xffff);
      if (type == Type::kF32) n.real = F32<false>::Read(static_cast<uint32_t>(bits));
      if (type == Type::kF32 && ftz) n.real = Flush(static_cast<float>(n.real));
      if (type == Type::kF64) n.real = std::bit_cast<double>(bits);
  }
  return n;
}

uint64_t FloatBits(double value, const Modes& m) {
  if (m.sat) value = value > 0 ? std::min(value, 1.0) : 0.0;
  if (m.relu && value < 0) value = 0;
  switch (m.to) {
    case Type::kF64:
      return std::bit_cast<uint64_t>(value);
    case Type::kF16: {
      double r = RoundTo(value, 11, -24, kLargestF16, m.rounding);
      if (m.satfinite && std::fabs(r) > kLargestF16) r = std::copysign(kLargestF16, r);
      return ToF16(static_cast<float>(r));
    }
    case Type::kBF16: {
      double r = RoundTo(value, 8, -133, kLargestBf16, m.rounding);
      if (m.satfinite && std::fabs(r) > kLargestBf16) r = std::copysign(kLargestBf16, r);
      return ToBf16(static_cast<float>(r));
    }
    case Type::kTF32: {
      if (std::isnan(value)) return 0x7fffffffu;
      return std::bit_cast<uint32_t>(static_cast<float>(RoundTo(value, 11, -136, 0x1.ffcp127, m.rounding)));
    }
    default: {
      const float r = static_cast<float>(RoundTo(value, 24, -149, kLargestFloat, m.rounding));
      return std::bit_cast<uint32_t>(m.ftz ? Flush(r) : r);
    }
  }
}

// Integers: out of range clamps to the nearest value when the source is a float or .sat is given, wraps otherwise.
uint64_t IntegerBits(const Number& n, const Modes& m) {
  const int bits = Bits(m.to);
  const __int128 low = IsSigned(m.to) ? -(__int128{1} << (bits - 1)) : 0;
  const __int128 high = IsSigned(m.to) ? (__int128{1} << (bits - 1)) - 1 : (__int128{1} << bits) - 1;
  __int128 value = n.integer;
  if (n.is_float) {
    const double r = RoundIntegral(n.real, m.rounding);
    if (std::isnan(r)) {
      // PTX: NaN becomes 0, but for 64-bit results the sign bit alone (all of hardware's generations agree).
      value = bits == 64 ? static_cast<__int128>(1) << 63 : 0;
      return static_cast<uint64_t>(value);
    }
    value = r <= static_cast<double>(low) ? low : r >= static_cast<double>(high) ? high : static_cast<__int128>(r);
  } else if (m.sat) {
    value = value < low ? low : value > high ? high : value;
  }
  uint64_t out = static_cast<uint64_t>(value);
  if (bits < 64) {  // extended into a wider register by the result's sign
    const uint64_t mask = (uint64_t{1} << bits) - 1;
    out &= mask;
    if (IsSigned(m.to) && (out >> (bits - 1) & 1) != 0) out |= ~mask;
  }
  return out;
}

uint64_t Convert(uint64_t bits, const Modes& m) {
  const Number n = Decode(bits, m.from, m.ftz);
  if (!IsFloat(m.to)) return IntegerBits(n, m);
  if (n.is_float) {
    return FloatBits(m.integral ? RoundIntegral(n.real, m.rounding) : n.real, m);
  }
  // A 64-bit integer may not fit a double: fold what is lost into a sticky last bit, far below any result's digits.
  double value = static_cast<double>(n.integer);
  if (m.to == Type::kF64) {
    if (m.rounding == Rounding::kNearest) return std::bit_cast<uint64_t>(value);
    const __int128 back = static_cast<__int128>(value);
    const bool down = m.rounding == Rounding::kDown || (m.rounding == Rounding::kZero && n.integer > 0);
    if (back != n.integer && (back > n.integer) == down) value = std::nextafter(value, down ? -INFINITY : INFINITY);
    return std::bit_cast<uint64_t>(value);
  }
  const __int128 back = static_cast<__int128>(value);
  if (back != n.integer && (std::bit_cast<uint64_t>(value) & 1) == 0) {
    value = std::nextafter(value, back < n.integer ? INFINITY : -INFINITY);
  }
  return FloatBits(value, m);
}

uint64_t Lane(const Warp& w, int32_t slot, bool wide, int l) {
  return wide ? w.Read<uint64_t>(slot)[l] : w.Read(slot)[l];
}

Signal Scalar(const Instruction& i, Warp& w, uint32_t lanes) {
  const Modes m = Unpack(i.flags);
  for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
    const int l = __builtin_ctz(rest);
    const uint64_t out = Convert(Lane(w, i.operand[1], m.from_register == 64, l), m);
    if (m.to_register == 64) {
      w.Write<uint64_t>(i.operand[0])[l] = out;
    } else {
      w.Write(i.operand[0])[l] = static_cast<uint32_t>(out) & static_cast<uint32_t>(i.immediate);
    }
  }
  return Signal::kNext;
}

// Two floats to a pair; the first source is the upper half.
Signal ToPair(const Instruction& i, Warp& w, uint32_t lanes) {
  Modes m = Unpack(i.flags);
  const bool fp8 = m.to == Type::kE4M3x2 || m.to == Type::kE5M2x2;
  const Type whole = m.to;
  m.to = whole == Type::kBF16x2 ? Type::kBF16 : Type::kF16;
  for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
    const int l = __builtin_ctz(rest);
    uint32_t halves[2];
    if (fp8) {
      for (int h = 0; h < 2; ++h) {
        halves[h] = ToFp8(F32<false>::Read(w.Read(i.operand[2 - h])[l]), whole == Type::kE4M3x2, m.relu);
      }
      w.Write(i.operand[0])[l] = halves[0] | halves[1] << 8;
      continue;
    }
    for (int h = 0; h < 2; ++h) halves[h] = static_cast<uint32_t>(Convert(w.Read(i.operand[2 - h])[l], m));
    w.Write(i.operand[0])[l] = halves[0] | halves[1] << 16;
  }
  return Signal::kNext;
}

Signal FromFp8Pair(const Instruction& i, Warp& w, uint32_t lanes) {  // to f16x2
  const Modes m = Unpack(i.flags);
  for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
    const int l = __builtin_ctz(rest);
    const uint32_t pair = w.Read(i.operand[1])[l];
    const auto half = [&](uint32_t bits) {
      return ToF16(static_cast<float>(FromFp8(bits & 0xff, m.from == Type::kE4M3x2)));
    };
    w.Write(i.operand[0])[l] = half(pair) | half(pair >> 8) << 16;
  }
  return Signal::kNext;
}

struct Cast {
  template <class T>
  static TESSERA_VGPU_INLINE T Do(T a) {
    return a;
  }
};
template <class T>
struct To {
  template <class S>
  static TESSERA_VGPU_INLINE T Do(S a) {
    return static_cast<T>(a);
  }
};
template <class H>
struct Pair {
  static TESSERA_VGPU_INLINE uint32_t Do(float high, float low) { return H::Write(high) << 16 | H::Write(low); }
};

Handler Frequent(const Modes& m) {
  if (m.sat || m.relu || m.satfinite || m.integral || m.ftz) return nullptr;
  using S32 = Int<int32_t>;
  using U32 = Int<uint32_t>;
  using S64 = Int<int64_t>;
  using U64 = Int<uint64_t>;
  const bool plain = m.to_register == Bits(m.to) && m.from_register == Bits(m.from);
  if (plain && m.to == Type::kS64 && m.from == Type::kS32) return Map<To<int64_t>, S64, S32>::Pick();
  if (plain && Bits(m.to) == 64 && m.from == Type::kU32) return Map<To<uint64_t>, U64, U32>::Pick();
  if (plain && Bits(m.to) == 32 && !IsFloat(m.to) && Bits(m.from) == 64 && !IsFloat(m.from))
    return Map<To<uint32_t>, U32, U64>::Pick();
  if (m.rounding != Rounding::kNearest) return nullptr;
  if (plain && m.to == Type::kF32 && m.from == Type::kS32) return Map<To<float>, F32<false>, S32>::Pick();
  if (plain && m.to == Type::kF32 && m.from == Type::kU32) return Map<To<float>, F32<false>, U32>::Pick();
  if (m.to == Type::kF32 && m.from == Type::kBF16) return Map<Cast, F32<false>, BF16>::Pick();
  if (m.to == Type::kF32 && m.from == Type::kF16) return Map<Cast, F32<false>, F16>::Pick();
  if (m.to == Type::kBF16 && m.from == Type::kF32) return Map<Cast, BF16, F32<false>>::Pick();
  if (m.to == Type::kF16 && m.from == Type::kF32) return Map<Cast, F16, F32<false>>::Pick();
  return nullptr;
}

bool ReadRounding(const Binder& b, Modes* m) {
  const struct {
    std::string_view name;
    Rounding rounding;
    bool integral;
  } kModes[] = {
      {"rn", Rounding::kNearest, false}, {"rz", Rounding::kZero, false},         {"rm", Rounding::kDown, false},
      {"rp", Rounding::kUp, false},      {"rna", Rounding::kNearestAway, false}, {"rni", Rounding::kNearest, true},
      {"rzi", Rounding::kZero, true},    {"rmi", Rounding::kDown, true},         {"rpi", Rounding::kUp, true}};
  for (const auto& mode : kModes) {
    if (!b.Has(mode.name)) continue;
    m->rounding = mode.rounding;
    m->integral = mode.integral;
    return true;
  }
  return !b.Has("rs");  // stochastic rounding is not known
}

}  // namespace

Handler BindConvert(Binder& b) {
  if (b.Part(0) != "cvt") return nullptr;
  if (b.Part(1) == "pack") return nullptr;
  b.out().kind = InstructionClass::kConvert;
  const std::vector<Type> types = b.Types();
  Modes m;
  if (types.size() != 2 || !ReadRounding(b, &m)) return nullptr;
  m.to = types[0];
  m.from = types[1];
  m.ftz = b.Has("ftz");
  m.sat = b.Has("sat");
  m.relu = b.Has("relu");
  m.satfinite = b.Has("satfinite");
  const bool to_pair = m.to == Type::kBF16x2 || m.to == Type::kF16x2 || m.to == Type::kE4M3x2 || m.to == Type::kE5M2x2;
  const bool from_fp8 = m.from == Type::kE4M3x2 || m.from == Type::kE5M2x2;
  if (from_fp8) {
    if (m.to != Type::kF16x2 || m.relu || !b.Bind({32, 16})) return nullptr;
    b.out().flags = Pack(m);
    return &FromFp8Pair;
  }
  if (to_pair) {
    if (m.from != Type::kF32 || !b.Bind({Bits(m.to), 32, 32})) return nullptr;
    b.out().flags = Pack(m);
    const bool plain = m.rounding == Rounding::kNearest && !m.relu && !m.satfinite;
    if (plain && m.to == Type::kBF16x2) return Map<Pair<BF16>, Int<uint32_t>, F32<false>, F32<false>>::Pick();
    if (plain && m.to == Type::kF16x2) return Map<Pair<F16>, Int<uint32_t>, F32<false>, F32<false>>::Pick();
    return &ToPair;
  }
  if (b.Operands() != 2 || m.to == Type::kPred || m.from == Type::kPred || m.from == Type::kTF32) return nullptr;
  if (Bits(m.to) > 64 || Bits(m.from) > 64) return nullptr;
  // Integer sources and results may sit in wider registers.
  m.to_register = b.RegisterBits(b.At(0)) == 64 ? 64 : 32;
  m.from_register = b.RegisterBits(b.At(1)) == 64 || (b.RegisterBits(b.At(1)) == 0 && Bits(m.from) == 64) ? 64 : 32;
  b.Bind({m.to_register, m.from_register});
  b.out().flags = Pack(m);
  b.out().immediate = b.RegisterBits(b.At(0)) == 16 || (IsFloat(m.to) && Bits(m.to) == 16) ? 0xffff : 0xffffffff;
  const Handler frequent = Frequent(m);
  return frequent != nullptr ? frequent : &Scalar;
}

}  // namespace tessera::vgpu
