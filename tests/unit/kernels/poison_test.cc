// NaN and infinity in keys and values that a row does not attend must not reach it; in those it attends they must.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/unit/kernels/kernel_test.h"

namespace tessera::testing {
namespace {

constexpr float kPoisons[] = {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                              -std::numeric_limits<float>::infinity()};

class Poison : public KernelTest {
 protected:
  // Poisons key or value `token` of a causal problem, which rows from `token` on attend.
  void ExpectConfined(DType dtype, bool in_value, int64_t token, float poison) {
    SCOPED_TRACE(absl::StrCat(std::string(Name(dtype)), in_value ? " value " : " key ", token, " ", poison));
    Random random(absl::StrCat("poison/", token));
    Problem problem = MakeProblem({dtype, 150, 150, 2, 1, 20, 12}, random);
    problem.bands = {{{0, 150}, {0, 150}, -kUnboundedDiagonal, 0}};
    const Result clean = Compute(kernel(), problem);
    (in_value ? problem.value : problem.key).Set(token, 0, 5, poison);
    const Result poisoned = Compute(kernel(), problem);
    for (int64_t row = 0; row < 150; ++row) {
      for (int head = 0; head < 2; ++head) {
        const size_t pair = static_cast<size_t>(row * 2 + head);
        const double o = poisoned.output[pair * 12 + 5];
        if (row < token) {
          EXPECT_EQ(poisoned.lse[pair], clean.lse[pair]) << row;
          for (size_t i = 0; i < 12; ++i) EXPECT_EQ(poisoned.output[pair * 12 + i], clean.output[pair * 12 + i]) << row;
        } else if (in_value || std::isnan(poison)) {
          EXPECT_FALSE(std::isfinite(o)) << row;
        }
      }
    }
  }
};

TEST_P(Poison, StaysWithTheRowsThatAttendIt) {
  for (DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
    if (!Serves(kernel(), dtype)) continue;
    for (float poison : kPoisons) {
      for (int64_t token : {3, 64, 149}) {
        ExpectConfined(dtype, false, token, poison);
        ExpectConfined(dtype, true, token, poison);
      }
    }
  }
}

TEST_P(Poison, InKeysThatNobodyAttendsIsNotRead) {
  for (float poison : kPoisons) {
    Random random("nobody");
    Problem problem = MakeProblem({Served(DType::kFloat32), 40, 200, 2, 2, 16, 16}, random);
    problem.bands = {{{0, 40}, {10, 70}}, {{0, 40}, {100, 130}}};
    const Result clean = Compute(kernel(), problem);
    for (int64_t token = 0; token < 200; ++token) {
      if ((token >= 10 && token < 70) || (token >= 100 && token < 130)) continue;
      for (int i = 0; i < 16; ++i) {
        problem.key.Set(token, 1, i, poison);
        problem.value.Set(token, 1, i, poison);
      }
    }
    const Result poisoned = Compute(kernel(), problem);
    EXPECT_EQ(poisoned.output, clean.output);
    EXPECT_EQ(poisoned.lse, clean.lse);
  }
}

// The neighbours in a register tile of a row whose queries are NaN.
TEST_P(Poison, InOneQueryStaysThere) {
  Random random("query");
  Problem problem = MakeProblem({Served(DType::kFloat32), 13, 90, 1, 1, 8, 8}, random);
  problem.bands = {{{0, 13}, {0, 90}}};
  const Result clean = Compute(kernel(), problem);
  problem.query.Set(7, 0, 2, kPoisons[0]);
  const Result poisoned = Compute(kernel(), problem);
  for (size_t row = 0; row < 13; ++row) {
    EXPECT_EQ(std::isnan(poisoned.output[row * 8]), row == 7);
    if (row != 7) {
      EXPECT_EQ(poisoned.output[row * 8], clean.output[row * 8]);
    }
  }
}

TEST_P(Poison, KeysThatAllScoreMinusInfinityGiveTheIdentity) {
  Random random("minus infinity");
  Problem problem = MakeProblem({Served(DType::kFloat32), 4, 9, 1, 1, 1, 3}, random);
  problem.bands = {{{0, 4}, {0, 9}}};
  problem.query.Fill(1.0f);
  problem.key.Fill(-std::numeric_limits<float>::infinity());
  const Result result = Compute(kernel(), problem);
  for (double o : result.output) EXPECT_EQ(o, 0.0);
  for (double lse : result.lse) EXPECT_EQ(lse, -INFINITY);
}

INSTANTIATE_TEST_SUITE_P(Present, Poison, ::testing::ValuesIn(TestedKernels()), TestName);

}  // namespace
}  // namespace tessera::testing
