#include "tests/virtual_gpu/ptx/convert_value.h"

#include <algorithm>
#include <limits>

namespace tessera::vgpu {
namespace {

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

uint64_t FloatBits(double value, const Conversion& m) {
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
uint64_t IntegerBits(const Number& n, const Conversion& m) {
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

}  // namespace

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

uint64_t Convert(uint64_t bits, const Conversion& m) {
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

}  // namespace tessera::vgpu
