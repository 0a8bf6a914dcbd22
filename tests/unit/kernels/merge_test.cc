#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/unit/kernels/problem.h"

namespace tessera::testing {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Pair {
  float output;
  float lse;
};

Partials One(Pair pair) {
  Partials partials(1, 1, 1);
  partials.output.Set(0, 0, 0, pair.output);
  partials.lse.Set(0, 0, 0, pair.lse);
  return partials;
}

Pair Merge(Pair a, Pair b) {
  Partials into = One(a);
  const Partials from = One(b);
  MergePartials(into.output.view(), into.lse.view(), 0, from.output.view(), from.lse.view(), 0, 1);
  return {into.output.Get(0, 0, 0), into.lse.Get(0, 0, 0)};
}

TEST(MergePartials, IdentityLeavesTheOtherSideUnchanged) {
  const Pair left = Merge({0.3f, 1.7f}, {0.0f, -kInfinity});
  EXPECT_EQ(left.output, 0.3f);
  EXPECT_EQ(left.lse, 1.7f);
  const Pair right = Merge({0.0f, -kInfinity}, {0.3f, 1.7f});
  EXPECT_EQ(right.output, 0.3f);
  EXPECT_EQ(right.lse, 1.7f);
  const Pair both = Merge({0.0f, -kInfinity}, {0.0f, -kInfinity});
  EXPECT_EQ(both.output, 0.0f);
  EXPECT_EQ(both.lse, -kInfinity);
}

TEST(MergePartials, WeighsBySumOfExponentials) {
  for (int i = 0; i < 200; ++i) {
    Random random(absl::StrCat("merge/", i));
    const Pair a{random.Normal(), 20.0f * random.Normal()}, b{random.Normal(), 20.0f * random.Normal()};
    const double max = std::max(a.lse, b.lse);
    const double wa = std::exp(a.lse - max), wb = std::exp(b.lse - max);
    const Pair merged = Merge(a, b);
    EXPECT_NEAR(merged.output, (wa * a.output + wb * b.output) / (wa + wb),
                4e-7 * (std::abs(a.output) + std::abs(b.output)));
    EXPECT_NEAR(merged.lse, max + std::log(wa + wb), 1e-6 * (1 + std::abs(max)));
  }
}

TEST(MergePartials, ExtremesStayFinite) {
  EXPECT_EQ(Merge({1.0f, 1e4f}, {2.0f, -1e4f}).output, 1.0f);
  EXPECT_EQ(Merge({1.0f, -1e4f}, {2.0f, 1e4f}).output, 2.0f);
  EXPECT_EQ(Merge({1.0f, 3e38f}, {2.0f, -3e38f}).lse, 3e38f);
  const Pair equal = Merge({1.0f, kInfinity}, {2.0f, kInfinity});
  EXPECT_EQ(equal.output, 1.5f);
  EXPECT_EQ(equal.lse, kInfinity);
  EXPECT_EQ(Merge({1.0f, kInfinity}, {2.0f, 5.0f}).output, 1.0f);
  EXPECT_EQ(Merge({1.0f, 5.0f}, {2.0f, kInfinity}).output, 2.0f);
}

TEST(MergePartials, TouchesTheNamedRowsOnly) {
  Random random("rows");
  Partials into(6, 2, 3), from(9, 2, 3);
  into.output.Fill(1.0f);
  into.lse.Fill(0.0f);
  from.output.Fill(3.0f);
  from.lse.Fill(0.0f);
  MergePartials(into.output.view(), into.lse.view(), 2, from.output.view(), from.lse.view(), 5, 3);
  for (int64_t row = 0; row < 6; ++row) {
    const bool merged = row >= 2 && row < 5;
    EXPECT_EQ(into.output.Get(row, 1, 2), merged ? 2.0f : 1.0f);
    EXPECT_EQ(into.lse.Get(row, 1, 0), merged ? std::log(2.0f) : 0.0f);
  }
}

TEST(FinishPartials, SinksTakeTheirShare) {
  Partials partials(2, 2, 1);
  partials.output.Fill(1.0f);
  partials.lse.Fill(0.0f);
  partials.output.Set(1, 0, 0, 0.0f);
  partials.lse.Set(1, 0, 0, -kInfinity);
  const float sinks[] = {0.0f, -kInfinity};
  Tensor result(DType::kBFloat16, 2, 2, 1), lse(DType::kFloat32, 2, 2, 1);
  FinishPartials(partials.output.view(), partials.lse.view(), sinks, result.view(), lse.view(), 2);
  EXPECT_EQ(result.Get(0, 0, 0), 0.5f);
  EXPECT_EQ(lse.Get(0, 0, 0), std::log(2.0f));
  EXPECT_EQ(result.Get(0, 1, 0), 1.0f);
  EXPECT_EQ(lse.Get(0, 1, 0), 0.0f);
  EXPECT_EQ(result.Get(1, 0, 0), 0.0f);
  EXPECT_EQ(lse.Get(1, 0, 0), 0.0f);
}

TEST(FinishPartials, RoundsToEveryDType) {
  Partials partials(1, 1, 1);
  partials.output.Set(0, 0, 0, 1.0f / 3);
  partials.lse.Set(0, 0, 0, 2.0f);
  for (DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
    Tensor result(dtype, 1, 1, 1), lse(DType::kFloat32, 1, 1, 1), expected(dtype, 1, 1, 1);
    expected.Set(0, 0, 0, 1.0f / 3);
    FinishPartials(partials.output.view(), partials.lse.view(), {}, result.view(), lse.view(), 1);
    EXPECT_EQ(result.Get(0, 0, 0), expected.Get(0, 0, 0));
    EXPECT_EQ(lse.Get(0, 0, 0), 2.0f);
  }
}

}  // namespace
}  // namespace tessera::testing
