// Every implementation present, forced one by one, against the fp64 oracle.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/unit/kernels/kernel_test.h"

namespace tessera::testing {
namespace {

class Attention : public KernelTest {
 protected:
  void ExpectKernelAccurate(const Problem& problem) const {
    ExpectAccurate(problem, Compute(kernel(), problem), RoundsWeights(kernel()));
  }
};

TEST_P(Attention, RandomProblems) {
  for (int i = 0; i < 240; ++i) {
    const std::string name = absl::StrCat("random/", i);
    Random random(name);
    const Problem problem = RandomProblem(random);
    SCOPED_TRACE(name + ": " + problem.Describe());
    ExpectKernelAccurate(problem);
  }
}

TEST_P(Attention, EveryHeadWidth) {
  for (int width = 1; width <= 256; ++width) {
    const std::string name = absl::StrCat("width/", width);
    Random random(name);
    Problem problem = MakeProblem({Served(static_cast<DType>(width % 3)), 7, 70, 1, 1, width, 257 - width}, random);
    problem.bands = {{{0, 7}, {0, 70}, -kUnboundedDiagonal, 63}};
    SCOPED_TRACE(name);
    ExpectKernelAccurate(problem);
  }
}

TEST_P(Attention, LatentWidths) {
  Random random("latent");
  Problem problem = MakeProblem({DType::kBFloat16, 3, 100, 16, 1, 576, 512}, random);
  problem.bands = {{{0, 3}, {0, 100}, -kUnboundedDiagonal, 97}};
  ExpectKernelAccurate(problem);
}

TEST_P(Attention, ScoresOfTenThousand) {
  for (float sign : {1.0f, -1.0f}) {
    Random random("ten thousand");
    Problem problem = MakeProblem({Served(DType::kFloat32), 20, 300, 1, 1, 64, 64}, random);
    problem.bands = {{{0, 20}, {0, 300}}};
    problem.score.scale = sign * 400.0f;
    SCOPED_TRACE(sign);
    ExpectKernelAccurate(problem);
    // One sign throughout: the reference exponent must follow scores far below zero too.
    for (int64_t row = 0; row < 20; ++row) {
      for (int i = 0; i < 64; ++i) problem.query.Set(row, 0, i, std::abs(problem.query.Get(row, 0, i)));
    }
    for (int64_t row = 0; row < 300; ++row) {
      for (int i = 0; i < 64; ++i) problem.key.Set(row, 0, i, std::abs(problem.key.Get(row, 0, i)));
    }
    ExpectKernelAccurate(problem);
  }
}

TEST_P(Attention, MaximumThatGrowsWithEveryKey) {
  Random random("growing");
  Problem problem = MakeProblem({Served(DType::kFloat32), 8, 600, 1, 1, 4, 8}, random);
  problem.bands = {{{0, 8}, {0, 600}}};
  problem.query.Fill(1.0f);
  for (int64_t row = 0; row < 600; ++row) {
    for (int i = 0; i < 4; ++i) problem.key.Set(row, 0, i, 0.05f * static_cast<float>(row));
  }
  ExpectKernelAccurate(problem);
}

TEST_P(Attention, LongRowsLoseNothing) {
  Random random("long");
  Problem problem = MakeProblem({Served(DType::kFloat32), 2, 20000, 1, 1, 16, 16}, random);
  problem.bands = {{{0, 2}, {0, 20000}}};
  ExpectKernelAccurate(problem);
}

TEST_P(Attention, SoftCapOfSmallAndLargeScores) {
  for (float scale : {1e-3f, 1.0f, 100.0f}) {
    Random random(absl::StrCat("cap/", scale));
    Problem problem = MakeProblem({Served(DType::kFloat32), 10, 130, 2, 1, 32, 32}, random);
    problem.bands = {{{0, 10}, {0, 130}}};
    problem.score.scale = scale;
    problem.score.soft_cap = 30.0f;
    SCOPED_TRACE(scale);
    ExpectKernelAccurate(problem);
  }
}

// Among numbers of ordinary size denormals weigh nothing, whether they are read as such or as zeros (which the products
// of bf16 do).
TEST_P(Attention, Denormals) {
  Random random("denormals");
  Problem problem = MakeProblem({Served(DType::kFloat32), 12, 150, 1, 1, 48, 40}, random);
  problem.bands = {{{0, 12}, {0, 150}, -kUnboundedDiagonal, 140}};
  for (int64_t row = 0; row < 150; row += 2) {
    for (int i = 0; i < 48; ++i) problem.key.Set(row, 0, i, 1e-39f * random.Normal());
    for (int i = 0; i < 40; ++i) problem.value.Set(row, 0, i, 1e-39f * random.Normal());
  }
  ExpectKernelAccurate(problem);
  // Nothing but denormals: no more than themselves may be lost.
  problem.value.FillNormal(random, 1e-39f);
  const Result exact = Oracle(problem), result = Compute(kernel(), problem);
  for (size_t i = 0; i < exact.output.size(); ++i) EXPECT_NEAR(result.output[i], exact.output[i], 0x1p-126);
}

TEST_P(Attention, NoKeysNoBandsNoRows) {
  Random random("nothing");
  Problem no_keys = MakeProblem({Served(DType::kFloat16), 5, 0, 2, 1, 8, 8}, random);
  no_keys.bands = {{{0, 5}, {0, 10}}};
  Problem no_bands = MakeProblem({Served(DType::kFloat32), 5, 70, 2, 1, 8, 8}, random);
  Problem empty_bands = MakeProblem({DType::kBFloat16, 5, 70, 2, 1, 8, 8}, random);
  empty_bands.bands = {{{2, 2}, {0, 70}}, {{0, 5}, {7, 7}}, {{0, 5}, {0, 70}, 3, 2}};
  for (const Problem* problem : {&no_keys, &no_bands, &empty_bands}) {
    const Result result = Compute(kernel(), *problem);
    for (double o : result.output) EXPECT_EQ(o, 0.0);
    for (double lse : result.lse) EXPECT_EQ(lse, -INFINITY);
  }
  Problem no_rows = MakeProblem({Served(DType::kFloat32), 0, 70, 2, 1, 8, 8}, random);
  EXPECT_TRUE(Compute(kernel(), no_rows).output.empty());
}

INSTANTIATE_TEST_SUITE_P(Present, Attention, ::testing::ValuesIn(TestedKernels()), TestName);

}  // namespace
}  // namespace tessera::testing
