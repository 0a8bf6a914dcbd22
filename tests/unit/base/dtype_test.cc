#include "runtime/base/dtype.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace tessera {
namespace {

// The value of a binary16 bit pattern, from the definition of the format.
double Float16Value(uint16_t bits) {
  const int exponent = (bits >> 10) & 31;
  const int mantissa = bits & 1023;
  const double sign = bits & 0x8000 ? -1.0 : 1.0;
  return sign * (exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25));
}

TEST(DType, EveryFloat16ConvertsExactlyAndBack) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const float value = FloatFromFloat16(half);
    if ((half & 0x7c00) == 0x7c00) {
      EXPECT_EQ(std::isnan(value), (half & 0x3ff) != 0);
      if (std::isnan(value)) continue;
      EXPECT_TRUE(std::isinf(value));
    } else {
      EXPECT_EQ(value, Float16Value(half)) << half;
    }
    EXPECT_EQ(Float16FromFloat(value), half);
  }
}

TEST(DType, Float16RoundsToNearestEven) {
  // Between any two neighbours: just below the middle goes down, the middle to the even one, just above it up.
  for (uint16_t low = 0; low < 0x7bff; ++low) {
    const double middle = (Float16Value(low) + Float16Value(low + 1)) / 2;
    const auto exact = static_cast<float>(middle);
    ASSERT_EQ(exact, middle);
    EXPECT_EQ(Float16FromFloat(exact), low % 2 == 0 ? low : low + 1);
    EXPECT_EQ(Float16FromFloat(std::nextafter(exact, 0.0f)), low);
    EXPECT_EQ(Float16FromFloat(std::nextafter(exact, 1e9f)), low + 1);
    EXPECT_EQ(Float16FromFloat(-exact), 0x8000 | (low % 2 == 0 ? low : low + 1));
  }
  EXPECT_EQ(Float16FromFloat(65519.9f), 0x7bff);
  EXPECT_EQ(Float16FromFloat(65520.0f), 0x7c00);
  EXPECT_EQ(Float16FromFloat(1e30f), 0x7c00);
  EXPECT_EQ(Float16FromFloat(std::numeric_limits<float>::quiet_NaN()) & 0x7e00, 0x7e00);
}

TEST(DType, BFloat16RoundsToNearestEvenAndKeepsNan) {
  EXPECT_EQ(BFloat16FromFloat(1.0f), 0x3f80);
  EXPECT_EQ(BFloat16FromFloat(std::bit_cast<float>(0x3f808000u)), 0x3f80);  // the middle, even below
  EXPECT_EQ(BFloat16FromFloat(std::bit_cast<float>(0x3f818000u)), 0x3f82);  // the middle, even above
  EXPECT_EQ(BFloat16FromFloat(std::bit_cast<float>(0x3f808001u)), 0x3f81);
  EXPECT_TRUE(std::isnan(FloatFromBFloat16(BFloat16FromFloat(std::bit_cast<float>(0x7f800001u)))));
  EXPECT_EQ(BFloat16FromFloat(std::numeric_limits<float>::infinity()), 0x7f80);
}

}  // namespace
}  // namespace tessera
