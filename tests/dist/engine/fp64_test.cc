// Problems in fp64: forward and backward to 1e-12 of a dense fp64 computation and of finite differences, on 1 to 4
// ranks.
#include <gtest/gtest.h>

#include "collectives/inproc/world.h"
#include "kernels/attention.h"
#include "partition/cost.h"
#include "partition/planner.h"
#include "partition/verify.h"
#include "tests/support/gradients.h"

namespace tessera {
namespace {

using testing::GeneratorFor;

class Fp64 : public ::testing::TestWithParam<int> {};

TEST_P(Fp64, EveryStrategyMatchesADenseComputationAndCountsItsBytes) {
  const int ranks = GetParam();
  for (int i = 0; i < testing::Problems(12); ++i) {
    const std::string name = absl::StrCat("engine/fp64/", ranks, "/", i);
    auto generator = GeneratorFor(name);
    Problem problem = testing::RandomProblem(generator, 50);
    problem.dtype = DType::kFloat64;
    const testing::Tensors tensors = testing::RandomTensors(problem, generator);
    const auto output_gradient = testing::RandomOutputGradient(problem, generator);
    const testing::GradientJudge judge(problem, tensors, output_gradient);
    for (const std::string& strategy : StrategyNames(ranks)) {
      SCOPED_TRACE(absl::StrCat(name, " ", strategy, " ", problem.ToString()));
      auto spec = MakePlanSpec(problem, {.strategy = strategy, .ranks = ranks});
      ASSERT_TRUE(spec.ok()) << spec.status();
      for (const Pass pass : {Pass::kForward, Pass::kBackward}) {
        spec->pass = pass;
        testing::Result result = testing::EmptyResult(problem);
        testing::Gradients gradients = testing::EmptyGradients(problem);
        std::vector<ExecutionStats> stats(ranks);
        auto forward = *spec;
        forward.pass = Pass::kForward;
        const Status status = RunRanks(ranks, {}, [&](Communicator& comm) {
          if (pass == Pass::kForward) {
            return testing::RunRank(comm, forward, tensors, {}, result, &stats[comm.rank()]);
          }
          return testing::RunRankBackward(comm, forward, tensors, output_gradient, gradients, &stats[comm.rank()]);
        });
        ASSERT_TRUE(status.ok()) << status;
        EXPECT_EQ(pass == Pass::kForward ? testing::Judge(problem, tensors, result) : judge.Judge(gradients), "");
        const Plan plan = BuildPlan(*spec);
        EXPECT_TRUE(Verify(plan).ok()) << Verify(plan);
        int64_t received = 0;
        for (const ExecutionStats& s : stats) received += s.traffic.bytes_received;
        EXPECT_EQ(received, PredictedBytes(*spec));
      }
    }
  }
}
INSTANTIATE_TEST_SUITE_P(Ranks, Fp64, ::testing::Range(1, 5));

// d(sum of output * output_gradient) / d(one number), by central differences.
TEST(Fp64Test, GradientsAreFiniteDifferences) {
  Problem problem;
  problem.dtype = DType::kFloat64;
  problem.query_tokens = problem.key_tokens = 19;
  problem.query_heads = 4;
  problem.kv_heads = 2;
  problem.qk_width = 6;
  problem.v_width = 5;
  problem.mask = Mask::Causal(19, 19).value();
  problem.score = {0.0f, 3.0f, true, true};
  auto generator = GeneratorFor("engine/fp64/differences");
  testing::Tensors tensors = testing::RandomTensors(problem, generator);
  const auto output_gradient = testing::RandomOutputGradient(problem, generator);
  const auto spec = MakePlanSpec(problem, {.strategy = "zigzag", .ranks = 3});
  ASSERT_TRUE(spec.ok()) << spec.status();
  testing::Gradients gradients = testing::EmptyGradients(problem);
  ASSERT_TRUE(RunRanks(3, {}, [&](Communicator& comm) {
                return testing::RunRankBackward(comm, *spec, tensors, output_gradient, gradients);
              }).ok());
  const auto loss = [&] {
    testing::Result result = testing::EmptyResult(problem);
    const Status status =
        RunRanks(3, {}, [&](Communicator& comm) { return testing::RunRank(comm, *spec, tensors, {}, result); });
    EXPECT_TRUE(status.ok()) << status;
    double sum = 0;
    for (size_t i = 0; i < result.output.size(); ++i) {
      sum += result.output[i] * LoadAsDouble(output_gradient.data(), problem.dtype, static_cast<int64_t>(i));
    }
    return sum;
  };
  constexpr double kStep = 1e-5;
  const std::pair<std::vector<std::byte>*, const std::vector<double>*> inputs[] = {
      {&tensors.query, &gradients.query}, {&tensors.key, &gradients.key}, {&tensors.value, &gradients.value}};
  for (const auto& [input, gradient] : inputs) {
    for (int draw = 0; draw < 12; ++draw) {
      const auto index = static_cast<int64_t>(generator() % gradient->size());
      const double kept = LoadAsDouble(input->data(), problem.dtype, index);
      StoreFromDouble(input->data(), problem.dtype, index, kept + kStep);
      const double above = loss();
      StoreFromDouble(input->data(), problem.dtype, index, kept - kStep);
      const double below = loss();
      StoreFromDouble(input->data(), problem.dtype, index, kept);
      EXPECT_NEAR((above - below) / (2 * kStep), (*gradient)[index], 1e-9);
    }
  }
}

TEST(Fp64Test, OnlyTheReferenceServesIt) {
  const auto kernel = FindAttentionKernel({DType::kFloat64, 64, 64});
  ASSERT_TRUE(kernel.ok()) << kernel.status();
  EXPECT_EQ((*kernel)->name(), "reference");
  for (const AttentionKernel* other : AttentionKernels()) {
    if (other->name() == "reference" || !other->WhyNot({DType::kFloat32, 64, 64}).empty()) continue;
    EXPECT_EQ(other->WhyNot({DType::kFloat64, 64, 64}), "it computes in fp32, which fp64 tensors would lose digits to");
  }
}

}  // namespace
}  // namespace tessera
