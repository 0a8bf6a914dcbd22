// What counts as accurate.
#include "launcher/truth.h"

#include <gtest/gtest.h>

namespace tessera::launcher {
namespace {

Truth PlainErrors(double relative, double max_absolute, double largest) {
  Truth truth;
  truth.largest = largest;
  truth.plain = {.max_absolute = max_absolute, .relative = relative, .lse_relative = 0};
  return truth;
}
bool Accepts(const Truth& truth, DType dtype, double relative, double max_absolute, double lse = 0) {
  return Acceptable({.max_absolute = max_absolute, .relative = relative, .lse_relative = lse}, truth, dtype);
}

TEST(TruthTest, TheRelativeErrorIsAtMostTwiceThePlainOne) {
  const Truth truth = PlainErrors(1.6e-3, 8e-3, 4);
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
    EXPECT_TRUE(Accepts(truth, dtype, 3.2e-3, 8e-3));
    EXPECT_FALSE(Accepts(truth, dtype, 3.21e-3, 8e-3)) << "no allowance for the dtype, which the plain run rounds to";
  }
}

TEST(TruthTest, AnExactPlainRunLeavesAFewRoundings) {
  const Truth truth = PlainErrors(0, 0, 1);
  EXPECT_TRUE(Accepts(truth, DType::kBFloat16, 4 * 0x1p-24, 0));
  EXPECT_FALSE(Accepts(truth, DType::kBFloat16, 5 * 0x1p-24, 0));
}

TEST(TruthTest, TheMaximumErrorMayRoundOnceMore) {
  const Truth truth = PlainErrors(1e-3, 0.01, 2);
  EXPECT_TRUE(Accepts(truth, DType::kBFloat16, 0, 0.02 + 2 * 0x1p-8));
  EXPECT_FALSE(Accepts(truth, DType::kBFloat16, 0, 0.021 + 2 * 0x1p-8));
  EXPECT_FALSE(Accepts(truth, DType::kFloat32, 0, 0.021));
}

TEST(TruthTest, TheLogSumExpIsWithinOneInAHundredThousand) {
  const Truth truth = PlainErrors(1, 1, 1);
  EXPECT_TRUE(Accepts(truth, DType::kFloat32, 0, 0, 1e-5));
  EXPECT_FALSE(Accepts(truth, DType::kFloat32, 0, 0, 1.1e-5));
}

TEST(TruthTest, InFp64OnlyTheOrderOfSumsIsForgiven) {
  const Truth truth = PlainErrors(0, 0, 1);
  EXPECT_TRUE(Accepts(truth, DType::kFloat64, 1e-12, 1e-12, 1e-12));
  EXPECT_FALSE(Accepts(truth, DType::kFloat64, 1e-11, 0));
  EXPECT_FALSE(Accepts(truth, DType::kFloat64, 0, 1e-11));
  EXPECT_FALSE(Accepts(truth, DType::kFloat64, 0, 0, 1e-11));
}

}  // namespace
}  // namespace tessera::launcher
