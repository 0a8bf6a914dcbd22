#include "runtime/base/counter_random.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace tessera {
namespace {

std::vector<float> Fill(uint64_t seed, uint8_t tensor, std::vector<Segment> segments, int heads, int width) {
  int64_t rows = 0;
  for (const Segment& segment : segments) rows += segment.count;
  std::vector<float> values(rows * heads * width);
  FillNormal(seed, tensor, segments, TensorView::Dense(values.data(), DType::kFloat32, rows, heads, width));
  return values;
}

TEST(CounterRandomTest, AValueDependsOnlyOnItsGlobalCoordinates) {
  constexpr int kHeads = 3, kWidth = 7;
  const std::vector<float> whole = Fill(11, 0, {{0, 20, 1}}, kHeads, kWidth);
  const std::vector<float> part = Fill(11, 0, {{1, 4, 5}, {2, 1, 1}}, kHeads, kWidth);
  const std::vector<int64_t> tokens = {1, 6, 11, 16, 2};
  for (size_t row = 0; row < tokens.size(); ++row) {
    for (int i = 0; i < kHeads * kWidth; ++i) {
      EXPECT_EQ(part[row * kHeads * kWidth + i], whole[tokens[row] * kHeads * kWidth + i]);
    }
  }
}

TEST(CounterRandomTest, SeedsAndTensorsDiffer) {
  const std::vector<float> values = Fill(1, 0, {{0, 8, 1}}, 1, 4);
  EXPECT_NE(values, Fill(2, 0, {{0, 8, 1}}, 1, 4));
  EXPECT_NE(values, Fill(1, 1, {{0, 8, 1}}, 1, 4));
  EXPECT_NE(values, Fill(uint64_t{1} << 32 | 1, 0, {{0, 8, 1}}, 1, 4));
  EXPECT_EQ(values, Fill(1, 0, {{0, 8, 1}}, 1, 4));
}

TEST(CounterRandomTest, RowsBeyondThirtyTwoBitsDiffer) {
  EXPECT_NE(Fill(1, 0, {{5, 1, 1}}, 1, 4), Fill(1, 0, {{(int64_t{1} << 32) + 5, 1, 1}}, 1, 4));
}

// Moments of n normals: mean 0 +- 1/sqrt(n), variance 1 +- sqrt(2/n), fourth moment 3 +- sqrt(96/n); five sigmas.
TEST(CounterRandomTest, MomentsAreThoseOfAStandardNormal) {
  const std::vector<float> values = Fill(7, 2, {{0, 4096, 1}}, 4, 64);
  const double n = static_cast<double>(values.size());
  double mean = 0, second = 0, fourth = 0, neighbours = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    const double x = values[i];
    ASSERT_TRUE(std::isfinite(x));
    mean += x / n;
    second += x * x / n;
    fourth += x * x * x * x / n;
    if (i > 0) neighbours += x * values[i - 1] / n;
  }
  EXPECT_NEAR(mean, 0, 5 / std::sqrt(n));
  EXPECT_NEAR(second, 1, 5 * std::sqrt(2 / n));
  EXPECT_NEAR(fourth, 3, 5 * std::sqrt(96 / n));
  EXPECT_NEAR(neighbours, 0, 5 / std::sqrt(n));
}

TEST(CounterRandomTest, HalfTypesAreTheRoundedFloats) {
  const std::vector<float> exact = Fill(3, 1, {{0, 16, 1}}, 2, 5);
  for (DType dtype : {DType::kBFloat16, DType::kFloat16}) {
    std::vector<uint16_t> bits(exact.size());
    const std::vector<Segment> segments = {{0, 16, 1}};
    FillNormal(3, 1, segments, TensorView::Dense(bits.data(), dtype, 16, 2, 5));
    for (size_t i = 0; i < exact.size(); ++i) {
      uint16_t expected[4] = {};  // room for the widest branch, which the compiler cannot rule out
      StoreFromFloat(expected, dtype, 0, exact[i]);
      EXPECT_EQ(bits[i], expected[0]);
    }
  }
}

}  // namespace
}  // namespace tessera
