// The backward pass of every implementation present against the fp64 oracle, and the oracle against finite differences.
#include <gtest/gtest.h>

#include <cmath>
#include <optional>

#include "kernels/reference/reference.h"
#include "tests/unit/kernels/backward_problem.h"

namespace tessera::testing {
namespace {

GradientSums Whole(const AttentionKernel& kernel, const BackwardProblem& backward) {
  GradientSums sums(backward.problem);
  const Tile tile = WholeTile(backward.problem);
  const Status status = kernel.AttendBackward(BackwardArgsOf(backward, sums, {&tile, 1}));
  EXPECT_TRUE(status.ok()) << status;
  return sums;
}

// All implementations in one test: judging costs more than running them.
void ExpectKernelsAccurate(const std::string& name, const Problem& problem, Random& random) {
  SCOPED_TRACE(name + ": " + problem.Describe());
  const auto forward = FindAttentionKernel({problem.dtype, 64, 64});
  ASSERT_TRUE(forward.ok()) << forward.status();
  const BackwardProblem backward(**forward, problem, random);
  const GradientJudge judge(backward);
  std::optional<GradientJudge> rounding_judge;
  for (const AttentionKernel* kernel : TestedKernels()) {
    if (!Serves(*kernel, problem.dtype)) continue;
    SCOPED_TRACE(kernel->name());
    const GradientResult result = RoundGradients(backward, Whole(*kernel, backward));
    if (RoundsWeights(*kernel)) {
      if (!rounding_judge) rounding_judge.emplace(backward, true);
      rounding_judge->Expect(result);
    } else {
      judge.Expect(result);
    }
  }
}

// The loss sum(output * gradient) in fp64 at inputs that fp32 holds exactly.
double Loss(const Problem& problem, const Tensor& gradient) {
  const Result result = Oracle(problem);
  double loss = 0;
  size_t next = 0;
  for (int64_t row = 0; row < problem.query_tokens(); ++row) {
    for (int head = 0; head < problem.heads(); ++head) {
      for (int i = 0; i < problem.v_width(); ++i) {
        loss += result.output[next++] * static_cast<double>(gradient.Get(row, head, i));
      }
    }
  }
  return loss;
}

TEST(BackwardOracle, AgreesWithCentralDifferences) {
  constexpr float kStep = 0x1p-12f;
  for (int i = 0; i < 24; ++i) {
    const std::string name = absl::StrCat("differences/", i);
    Random random(name);
    Problem problem = MakeProblem({DType::kFloat32, 4, 5, 2, 1 + i % 2, 3, 2 + i % 3}, random);
    problem.bands =
        i % 3 == 0 ? std::vector<Band>{{{0, 4}, {0, 5}}} : std::vector<Band>{{{1, 4}, {0, 5}, -kUnboundedDiagonal, 1}};
    if (i % 4 == 1) problem.score.soft_cap = 1.5f;
    if (i % 4 == 2) problem.slopes = {0.3f, 0.7f};
    if (i % 2 == 1) problem.sinks = {0.5f, -1.0f};
    SCOPED_TRACE(name + ": " + problem.Describe());
    // Multiples of the step below 2^11 steps move by a step without rounding.
    for (Tensor* tensor : {&problem.query, &problem.key, &problem.value}) {
      const TensorView view = tensor->view();
      for (int64_t row = 0; row < view.rows; ++row) {
        for (int head = 0; head < view.heads; ++head) {
          for (int c = 0; c < view.width; ++c) {
            tensor->Set(row, head, c, std::round(tensor->Get(row, head, c) / kStep) * kStep);
          }
        }
      }
    }
    Tensor gradient(DType::kFloat32, 4, 2, problem.v_width(), &random);
    gradient.FillNormal(random, 1.0f);
    ScoreArgs score = problem.score;
    score.alibi_slopes = problem.slopes;
    const auto exact = reference::AttentionBackward(problem.query.view(), problem.key.view(), problem.value.view(),
                                                    gradient.view(), problem.bands, score, problem.sinks);
    ASSERT_TRUE(exact.ok()) << exact.status();
    const auto expect = [&](const char* what, size_t at, double derivative, auto&& set) {
      set(kStep);
      const double up = Loss(problem, gradient);
      set(-kStep);
      const double down = Loss(problem, gradient);
      set(0.0f);
      EXPECT_NEAR(derivative, (up - down) / (2.0 * static_cast<double>(kStep)), 2e-6) << what << " " << at;
    };
    const auto expect_all = [&](const char* what, Tensor& tensor, const std::vector<double>& derivatives) {
      const TensorView view = tensor.view();
      size_t next = 0;
      for (int64_t row = 0; row < view.rows; ++row) {
        for (int head = 0; head < view.heads; ++head) {
          for (int c = 0; c < view.width; ++c, ++next) {
            const float x = tensor.Get(row, head, c);
            expect(what, next, derivatives[next], [&](float step) { tensor.Set(row, head, c, x + step); });
          }
        }
      }
      EXPECT_EQ(next, derivatives.size());
    };
    expect_all("dq", problem.query, exact->query);
    expect_all("dk", problem.key, exact->key);
    expect_all("dv", problem.value, exact->value);
    for (size_t head = 0; head < problem.sinks.size(); ++head) {
      const float sink = problem.sinks[head];
      expect("dsink", head, exact->sink[head], [&](float step) { problem.sinks[head] = sink + step; });
    }
  }
}

TEST(Backward, RandomProblems) {
  for (int i = 0; i < 200; ++i) {
    const std::string name = absl::StrCat("backward/", i);
    Random random(name);
    ExpectKernelsAccurate(name, RandomProblem(random), random);
  }
}

// Every width below three vectors on the query's side, every remainder beyond.
TEST(Backward, HeadWidths) {
  for (int width = 1; width <= 256; width += width < 36 ? 1 : 11) {
    const std::string name = absl::StrCat("backward width/", width);
    Random random(name);
    Problem problem = MakeProblem({static_cast<DType>(width % 3), 7, 70, 1, 1, width, 257 - width}, random);
    problem.bands = {{{0, 7}, {0, 70}, -kUnboundedDiagonal, 63}};
    ExpectKernelsAccurate(name, problem, random);
  }
}

// Several pieces on both sides, and passes with idle tiles.
TEST(Backward, LongerThanOnePiece) {
  for (int i = 0; i < 3; ++i) {
    const std::string name = absl::StrCat("pieces/", i);
    Random random(name);
    Problem problem = MakeProblem({DType::kFloat32, 333, 301, 2, 1, 24, 16}, random);
    problem.bands = {{{0, 333}, {0, 301}, i == 1 ? -70 : -kUnboundedDiagonal, i == 0 ? 400 : -20}};
    ExpectKernelsAccurate(name, problem, random);
  }
}

// So many key heads that a task is hundreds of rows by hundreds of keys: several passes, and passes of one key block
// beside the next one's. Or few rows by hundreds of keys.
TEST(Backward, SeveralPassesOfOneTask) {
  const std::vector<Band> masks[] = {
      {{{0, 200}, {0, 150}}},
      {{{0, 200}, {0, 150}, -kUnboundedDiagonal, -40}},
      {{{0, 200}, {0, 150}, -70, 0}},
      {{{30, 40}, {0, 150}}, {{100, 101}, {64, 128}}, {{150, 200}, {100, 150}, -kUnboundedDiagonal, -50}}};
  for (size_t i = 0; i < 2 * std::size(masks); ++i) {
    const std::string name = absl::StrCat("passes/", i);
    Random random(name);
    Problem problem = MakeProblem({DType::kBFloat16, 200, 150, 16, 16, 5, 18}, random);
    problem.bands = masks[i / 2];
    if (i % 2 == 1) problem.score.soft_cap = 2.0f;
    ExpectKernelsAccurate(name, problem, random);
    if (i >= 2) continue;
    Problem wide = MakeProblem({DType::kBFloat16, 20, 400, 16, 16, 12, 7}, random);
    wide.bands = {{{0, 20}, {0, 400}}};
    wide.score.soft_cap = problem.score.soft_cap;
    ExpectKernelsAccurate(name + " wide", wide, random);
  }
}

}  // namespace
}  // namespace tessera::testing
