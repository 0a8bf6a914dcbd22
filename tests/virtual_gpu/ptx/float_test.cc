// Floating-point instructions and conversions against exact arithmetic: results are rounded here by a search among the
// numbers of the format, in long double or with integers, not by the code under test.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <random>

#include "tests/virtual_gpu/ptx/ptx_runner.h"

namespace tessera::vgpu {
namespace {

// A binary format: value of its bits, without sign.
struct Format {
  int exponent_bits, mantissa_bits;
  int Bias() const { return (1 << (exponent_bits - 1)) - 1; }
  int SignBit() const { return exponent_bits + mantissa_bits; }
  uint32_t Infinity() const { return ((1u << exponent_bits) - 1) << mantissa_bits; }
  long double Magnitude(uint32_t bits) const {
    const int exponent = static_cast<int>(bits >> mantissa_bits),
              mantissa = static_cast<int>(bits & ((1u << mantissa_bits) - 1));
    if (exponent == 0) return std::ldexp(static_cast<long double>(mantissa), 1 - Bias() - mantissa_bits);
    return std::ldexp(static_cast<long double>(mantissa + (1 << mantissa_bits)), exponent - Bias() - mantissa_bits);
  }
  double Value(uint32_t bits) const {
    const uint32_t magnitude = bits & ((1u << SignBit()) - 1);
    if (magnitude > Infinity()) return std::numeric_limits<double>::quiet_NaN();
    const double value =
        magnitude == Infinity() ? std::numeric_limits<double>::infinity() : static_cast<double>(Magnitude(magnitude));
    return (bits >> SignBit() & 1) != 0 ? -value : value;
  }
  // mode: 'n' nearest even, 'z' zero, 'm' down, 'p' up. By bisection over the format's numbers, which ascend.
  uint32_t Round(long double value, char mode = 'n') const {
    const uint32_t sign = std::signbit(value) ? 1u << SignBit() : 0;
    const long double magnitude = std::fabs(value);
    if (std::isinf(value)) return sign | Infinity();
    uint32_t low = 0,
             high = Infinity();  // Magnitude(low) <= magnitude < Magnitude(high), infinity as the next power of two
    while (high - low > 1) {
      const uint32_t middle = (low + high) / 2;
      (Magnitude(middle) <= magnitude ? low : high) = middle;
    }
    if (Magnitude(low) == magnitude) return sign | low;
    const long double below = magnitude - Magnitude(low), above = Magnitude(high) - magnitude;
    bool up = false;
    if (mode == 'n') up = below > above || (below == above && (low & 1) != 0);
    if (mode == 'p') up = sign == 0;
    if (mode == 'm') up = sign != 0;
    if (magnitude >= Magnitude(Infinity()) && mode != 'n') low = Infinity() - 1;
    return sign | (up ? low + 1 : low);
  }
};
constexpr Format kF32{8, 23}, kF16{5, 10}, kBf16{8, 7};

std::mt19937_64 Generator(const std::string& name) {
  std::seed_seq seed(name.begin(), name.end());
  return std::mt19937_64(seed);
}

// Bits of a format: special values, numbers of all sizes, neighbours of each other.
std::vector<uint64_t> Numbers(const Format& format, std::mt19937_64& random, bool near_one) {
  std::vector<uint64_t> bits = {0, 1u << format.SignBit(), 1, format.Infinity() - 1, 1u << format.mantissa_bits};
  while (bits.size() < 32) {
    uint32_t b = static_cast<uint32_t>(random()) & ((2u << format.SignBit()) - 1);
    if (near_one) {
      const uint32_t exponent = static_cast<uint32_t>(format.Bias() - 3 + static_cast<int>(random() % 7));
      b = (b & ~format.Infinity()) | exponent << format.mantissa_bits;
    }
    if ((b & format.Infinity()) != format.Infinity()) bits.push_back(b);
  }
  std::shuffle(bits.begin(), bits.end(), random);
  return bits;
}

void ExpectSame(const Format& format, uint64_t got, uint64_t expected, const std::string& what) {
  if (std::isnan(format.Value(static_cast<uint32_t>(expected)))) {
    EXPECT_TRUE(std::isnan(format.Value(static_cast<uint32_t>(got)))) << what;
  } else {
    EXPECT_EQ(got, expected) << what << ": " << format.Value(static_cast<uint32_t>(got)) << " for "
                             << format.Value(static_cast<uint32_t>(expected));
  }
}

struct FloatCase {
  std::string text;
  Format format;
  char mode;
  std::function<long double(double, double, double)> exact;
};
class FloatTest : public testing::TestWithParam<FloatCase> {};

TEST_P(FloatTest, IsTheExactResultRoundedOnce) {
  const FloatCase& test = GetParam();
  auto random = Generator(test.text);
  const int bits = test.format.SignBit() + 1;
  for (int round = 0; round < 8; ++round) {
    const Lanes in = {Numbers(test.format, random, round > 3), Numbers(test.format, random, round > 3),
                      Numbers(test.format, random, round > 3)};
    std::string error;
    const auto out = Evaluate(test.text, in, bits, bits, &error);
    ASSERT_EQ(out.size(), 32u) << error;
    for (int l = 0; l < 32; ++l) {
      const double a = test.format.Value(static_cast<uint32_t>(in.a[l])),
                   b = test.format.Value(static_cast<uint32_t>(in.b[l])),
                   c = test.format.Value(static_cast<uint32_t>(in.c[l]));
      const long double exact = test.exact(a, b, c);
      if (exact == 0) continue;  // the sign of zero has a test of its own
      ExpectSame(test.format, out[l],
                 std::isnan(exact) ? test.format.Infinity() + 1 : test.format.Round(exact, test.mode),
                 test.text + " of " + std::to_string(a) + ", " + std::to_string(b) + ", " + std::to_string(c));
    }
  }
}

using D = double;
using L = long double;
// Sums are rounded to odd to the 64 bits of long double, so that rounding again to a format is right. Products of two
// floats and their quotients need no such care.
using Q = __float128;
L Sum(Q a, Q b) {
  const Q sum = a + b, from_b = sum - a;
  const Q lost = (a - (sum - from_b)) + (b - from_b);
  const L nearest = static_cast<L>(sum);
  const Q rest = (sum - static_cast<Q>(nearest)) + lost;
  if (rest == 0 || nearest == 0) return nearest;
  int exponent;
  const L scaled = std::ldexp(std::frexp(nearest, &exponent), 64);
  return std::fmod(scaled, static_cast<L>(2)) != 0 ? nearest : std::nextafter(nearest, rest > 0 ? INFINITY : -INFINITY);
}
const FloatCase kFloats[] = {
    {"add.f32 %result, %a, %b;", kF32, 'n', [](D a, D b, D) { return Sum(a, b); }},
    {"sub.rn.f32 %result, %a, %b;", kF32, 'n', [](D a, D b, D) { return Sum(a, -b); }},
    {"add.rz.f32 %result, %a, %b;", kF32, 'z', [](D a, D b, D) { return Sum(a, b); }},
    {"add.rm.f32 %result, %a, %b;", kF32, 'm', [](D a, D b, D) { return Sum(a, b); }},
    {"mul.rp.f32 %result, %a, %b;", kF32, 'p', [](D a, D b, D) { return static_cast<L>(a) * b; }},
    {"mul.f32 %result, %a, %b;", kF32, 'n', [](D a, D b, D) { return static_cast<L>(a) * b; }},
    {"fma.rn.f32 %result, %a, %b, %c;", kF32, 'n', [](D a, D b, D c) { return Sum(static_cast<Q>(a) * b, c); }},
    {"fma.rm.f32 %result, %a, %b, %c;", kF32, 'm', [](D a, D b, D c) { return Sum(static_cast<Q>(a) * b, c); }},
    {"div.rn.f32 %result, %a, %b;", kF32, 'n', [](D a, D b, D) { return static_cast<L>(a) / b; }},
    {"rcp.rn.f32 %result, %a;", kF32, 'n', [](D a, D, D) { return 1 / static_cast<L>(a); }},
    {"sqrt.rn.f32 %result, %a;", kF32, 'n', [](D a, D, D) { return std::sqrt(static_cast<L>(a)); }},
    {"min.f32 %result, %a, %b;", kF32, 'n', [](D a, D b, D) { return std::min<L>(a, b); }},
    {"max.f32 %result, %a, %b;", kF32, 'n', [](D a, D b, D) { return std::max<L>(a, b); }},
    {"neg.f32 %result, %a;", kF32, 'n', [](D a, D, D) { return -a; }},
    {"abs.f32 %result, %a;", kF32, 'n', [](D a, D, D) { return std::fabs(a); }},
    {"copysign.f32 %result, %a, %b;", kF32, 'n', [](D a, D b, D) { return std::copysign(b, a); }},
    {"add.rn.f16 %result, %a, %b;", kF16, 'n', [](D a, D b, D) { return a + b; }},
    {"mul.rn.f16 %result, %a, %b;", kF16, 'n', [](D a, D b, D) { return a * b; }},
    {"fma.rn.f16 %result, %a, %b, %c;", kF16, 'n', [](D a, D b, D c) { return Sum(static_cast<Q>(a) * b, c); }},
    {"add.rn.bf16 %result, %a, %b;", kBf16, 'n', [](D a, D b, D) { return Sum(a, b); }},
    {"mul.rn.bf16 %result, %a, %b;", kBf16, 'n', [](D a, D b, D) { return a * b; }},
    {"fma.rn.bf16 %result, %a, %b, %c;", kBf16, 'n', [](D a, D b, D c) { return Sum(static_cast<Q>(a) * b, c); }},
    {"max.bf16 %result, %a, %b;", kBf16, 'n', [](D a, D b, D) { return std::max<L>(a, b); }},
    {"neg.bf16 %result, %a;", kBf16, 'n', [](D a, D, D) { return -a; }},
};
INSTANTIATE_TEST_SUITE_P(All, FloatTest, testing::ValuesIn(kFloats));

uint64_t One(const std::string& body, uint64_t a, uint64_t b = 0, uint64_t c = 0, int source = 32, int result = 32) {
  std::string error;
  const auto out = Evaluate(body, {{a}, {b}, {c}}, source, result, &error);
  EXPECT_EQ(error, "") << body;
  return out.empty() ? ~uint64_t{0} : out[0];
}

TEST(SpecialValuesTest, NanLosesAgainstANumberAndMinusZeroIsLess) {
  const uint64_t nan = 0x7fc00000, one = Bits(1.0f), plus = 0, minus = 0x80000000;
  EXPECT_EQ(One("max.f32 %result, %a, %b;", nan, one), one);
  EXPECT_EQ(One("min.f32 %result, %a, %b;", one, nan), one);
  EXPECT_TRUE(std::isnan(FloatOf(One("max.NaN.f32 %result, %a, %b;", nan, one))));
  EXPECT_EQ(One("min.f32 %result, %a, %b;", plus, minus), minus);
  EXPECT_EQ(One("max.f32 %result, %a, %b;", minus, plus), plus);
  EXPECT_EQ(One("add.f32 %result, %a, %b;", minus, minus), minus);
  EXPECT_EQ(One("add.sat.f32 %result, %a, %b;", nan, one), plus);
  EXPECT_EQ(One("add.sat.f32 %result, %a, %b;", one, one), one);
  EXPECT_EQ(One("add.ftz.f32 %result, %a, %b;", 0x80000001, minus), minus);
  EXPECT_EQ(One("{ .reg .pred %q; setp.lt.f32 %q, %a, %b; selp.b32 %result, 1, 0, %q; }", nan, one), 0u);
  EXPECT_EQ(One("{ .reg .pred %q; setp.geu.f32 %q, %a, %b; selp.b32 %result, 1, 0, %q; }", nan, one), 1u);
  EXPECT_EQ(One("{ .reg .pred %q; setp.ne.f32 %q, %a, %b; selp.b32 %result, 1, 0, %q; }", nan, one), 0u);
  EXPECT_EQ(One("{ .reg .pred %q; setp.neu.f32 %q, %a, %b; selp.b32 %result, 1, 0, %q; }", nan, one), 1u);
  EXPECT_EQ(One("{ .reg .pred %q; setp.nan.f32 %q, %a, %b; selp.b32 %result, 1, 0, %q; }", nan, one), 1u);
}

// Relative errors that the ISA allows for .approx, and exact values where it names them.
TEST(SpecialFunctionTest, ApproximationsAreWithinTheirBounds) {
  auto random = Generator("special");
  std::uniform_real_distribution<float> exponent(-120, 120), angle(-3, 3);
  const struct {
    const char* text;
    double (*exact)(double);
    double bound;  // relative, or absolute for sin and cos
    bool positive, small;
  } kFunctions[] = {{"ex2.approx.f32 %result, %a;", [](double x) { return std::exp2(x); }, 0x1p-22, false, false},
                    {"ex2.approx.ftz.f32 %result, %a;", [](double x) { return std::exp2(x); }, 0x1p-22, false, false},
                    {"rcp.approx.ftz.f32 %result, %a;", [](double x) { return 1 / x; }, 0x1p-23, false, false},
                    {"rsqrt.approx.f32 %result, %a;", [](double x) { return 1 / std::sqrt(x); }, 0x1p-22, true, false},
                    {"sqrt.approx.f32 %result, %a;", [](double x) { return std::sqrt(x); }, 0x1p-22, true, false},
                    {"lg2.approx.f32 %result, %a;", [](double x) { return std::log2(x); }, 0x1p-22, true, false},
                    {"sin.approx.f32 %result, %a;", [](double x) { return std::sin(x); }, 0x1p-20, false, true},
                    {"cos.approx.f32 %result, %a;", [](double x) { return std::cos(x); }, 0x1p-20, false, true},
                    {"tanh.approx.f32 %result, %a;", [](double x) { return std::tanh(x); }, 0x1p-10, false, true}};
  for (const auto& f : kFunctions) {
    Lanes in;
    for (int l = 0; l < 32; ++l)
      in.a.push_back(Bits(f.small ? angle(random) : f.positive ? std::fabs(exponent(random)) : exponent(random)));
    std::string error;
    const auto out = Evaluate(f.text, in, 32, 32, &error);
    ASSERT_EQ(out.size(), 32u) << error;
    for (int l = 0; l < 32; ++l) {
      const double exact = f.exact(FloatOf(in.a[l]));
      EXPECT_LE(std::fabs(FloatOf(out[l]) - exact), f.bound * std::max(f.small ? 1.0 : 0.0, std::fabs(exact)) + 1e-44)
          << f.text << FloatOf(in.a[l]);
    }
  }
  EXPECT_EQ(One("ex2.approx.f32 %result, %a;", 0xff800000), 0u);
  EXPECT_EQ(One("ex2.approx.f32 %result, %a;", 0x7f800000), 0x7f800000u);
  EXPECT_EQ(One("ex2.approx.f32 %result, %a;", Bits(0.0f)), Bits(1.0f));
  EXPECT_EQ(One("ex2.approx.ftz.f32 %result, %a;", Bits(-140.0f)), 0u);
  EXPECT_TRUE(std::isnan(FloatOf(One("ex2.approx.f32 %result, %a;", 0x7fc00000))));
  EXPECT_EQ(One("rcp.approx.f32 %result, %a;", 0x80000000), 0xff800000u);
  EXPECT_EQ(One("lg2.approx.f32 %result, %a;", 0), 0xff800000u);
}

TEST(ConversionTest, FloatsToHalves) {
  auto random = Generator("halves");
  for (const auto& [name, format] : {std::pair{std::string("bf16"), kBf16}, std::pair{std::string("f16"), kF16}}) {
    for (const char mode : {'n', 'z'}) {
      for (int round = 0; round < 8; ++round) {
        Lanes in;
        for (int l = 0; l < 32; ++l) {  // half of them near the format's numbers and their midpoints
          const uint32_t near = static_cast<uint32_t>(random());
          in.a.push_back(l % 2 == 0 ? (near & 0xffff8000) | (near & 1 ? 0x1000 : 0) : near);
          if ((in.a[l] & 0x7f800000) == 0x7f800000) in.a[l] ^= 0x40000000;
          in.b.push_back(Bits(
              std::ldexp(1.0f + static_cast<float>(near & 0xffff) / 65536, static_cast<int>(near >> 16 & 31) - 24)));
        }
        const std::string r = mode == 'n' ? "rn" : "rz";
        const auto single = Evaluate("cvt." + r + "." + name + ".f32 %result, %a;", in, 32, 16);
        const auto pair = Evaluate("cvt." + r + "." + name + "x2.f32 %result, %a, %b;", in, 32, 32);
        ASSERT_EQ(single.size(), 32u);
        ASSERT_EQ(pair.size(), 32u);
        for (int l = 0; l < 32; ++l) {
          const uint32_t a = format.Round(FloatOf(in.a[l]), mode), b = format.Round(FloatOf(in.b[l]), mode);
          EXPECT_EQ(single[l], a) << FloatOf(in.a[l]);
          EXPECT_EQ(pair[l], a << 16 | b);
        }
      }
    }
    // And back, for every value of the format.
    for (uint32_t first = 0; first < 65536; first += 32 * 61) {
      Lanes in;
      for (uint32_t l = 0; l < 32; ++l) in.a.push_back((first + l * 61) & 0xffff);
      const auto out = Evaluate("cvt.f32." + name + " %result, %a;", in, 16, 32);
      ASSERT_EQ(out.size(), 32u);
      for (int l = 0; l < 32; ++l) {
        const double expected = format.Value(static_cast<uint32_t>(in.a[l]));
        if (std::isnan(expected)) {
          EXPECT_TRUE(std::isnan(FloatOf(out[l])));
        } else {
          EXPECT_EQ(FloatOf(out[l]), expected);
        }
      }
    }
  }
  EXPECT_EQ(One("cvt.rn.bf16.f32 %result, %a;", 0x7fc00001, 0, 0, 32, 16), 0x7fffu);
  EXPECT_EQ(One("cvt.rn.f16.f32 %result, %a;", Bits(1e6f), 0, 0, 32, 16), 0x7c00u);
  EXPECT_EQ(One("cvt.rn.satfinite.f16x2.f32 %result, %a, %b;", Bits(-1e6f), Bits(1.0f)), 0xfbff3c00u);
  EXPECT_EQ(One("cvt.rn.relu.bf16x2.f32 %result, %a, %b;", Bits(-2.0f), Bits(1.0f)), 0x00003f80u);
}

TEST(ConversionTest, FloatsToIntegersRoundAndClamp) {
  EXPECT_EQ(One("cvt.rni.s32.f32 %result, %a;", Bits(2.5f)), 2u);
  EXPECT_EQ(One("cvt.rni.s32.f32 %result, %a;", Bits(3.5f)), 4u);
  EXPECT_EQ(One("cvt.rzi.s32.f32 %result, %a;", Bits(-2.9f)), 0xfffffffeu);
  EXPECT_EQ(One("cvt.rmi.s32.f32 %result, %a;", Bits(-2.1f)), 0xfffffffdu);
  EXPECT_EQ(One("cvt.rpi.s32.f32 %result, %a;", Bits(2.1f)), 3u);
  EXPECT_EQ(One("cvt.rzi.s32.f32 %result, %a;", Bits(3e9f)), 0x7fffffffu);
  EXPECT_EQ(One("cvt.rzi.u32.f32 %result, %a;", Bits(-1.0f)), 0u);
  EXPECT_EQ(One("cvt.rzi.s32.f32 %result, %a;", 0x7fc00000), 0u);
  EXPECT_EQ(One("cvt.rmi.f32.f32 %result, %a;", Bits(-2.1f)), Bits(-3.0f));
  EXPECT_EQ(One("cvt.sat.f32.f32 %result, %a;", Bits(2.5f)), Bits(1.0f));
  EXPECT_EQ(One("cvt.rn.f32.u32 %result, %a;", 0xffffffff), Bits(4294967296.0f));
  EXPECT_EQ(One("cvt.rz.f32.u32 %result, %a;", 0xffffffff), Bits(4294967040.0f));
  EXPECT_EQ(One("cvt.rn.f32.s64 %result, %a;", 0x4000004000000001, 0, 0, 64, 32), Bits(0x1.000002p62f));
  EXPECT_EQ(One("cvt.rn.f32.f64 %result, %a;", Bits(1.0 + 0x1p-24 + 0x1p-50), 0, 0, 64, 32), Bits(1.0f + 0x1p-23f));
  EXPECT_EQ(One("cvt.f64.f32 %result, %a;", Bits(0.1f), 0, 0, 32, 64), Bits(static_cast<double>(0.1f)));
  EXPECT_EQ(One("cvt.rn.f64.s32 %result, %a;", 0xffffffff, 0, 0, 32, 64), Bits(-1.0));
  EXPECT_EQ(One("cvt.rn.satfinite.e4m3x2.f32 %result, %a, %b;", Bits(1000.0f), Bits(-1.0f), 0, 32, 16), 0x7eb8u);
  EXPECT_EQ(One("cvt.rn.f16x2.e4m3x2 %result, %a;", 0x7eb8, 0, 0, 16, 32), 0x5f00bc00u);
}

TEST(PackedTest, BothHalvesAreComputed) {
  // 1 and 2 in the low half, 3 and 4 in the high half; 16-bit patterns of bf16 and f16.
  EXPECT_EQ(One("add.rn.bf16x2 %result, %a, %b;", 0x40403f80, 0x40804000), 0x40e04040u);
  EXPECT_EQ(One("mul.rn.f16x2 %result, %a, %b;", 0x42003c00, 0x44004000), 0x4a004000u);
  EXPECT_EQ(One("fma.rn.bf16x2 %result, %a, %b, %c;", 0x40403f80, 0x40804000, 0x3f803f80), 0x41504040u);
  EXPECT_EQ(One("fma.rn.relu.bf16x2 %result, %a, %b, %c;", 0x40403f80, 0xc0804000, 0x3f803f80), 0x00004040u);
  EXPECT_EQ(One("max.bf16x2 %result, %a, %b;", 0x40403f80, 0xc0804000), 0x40404000u);
  EXPECT_EQ(One("neg.bf16x2 %result, %a;", 0x40403f80), 0xc040bf80u);
  EXPECT_EQ(One("abs.bf16x2 %result, %a;", 0xc040bf80), 0x40403f80u);
  EXPECT_EQ(One("ex2.approx.ftz.bf16x2 %result, %a;", 0x40403f80), 0x41004000u);
}

}  // namespace
}  // namespace tessera::vgpu
