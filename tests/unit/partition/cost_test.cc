#include "partition/cost.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "partition/cost_band_index.h"
#include "tests/support/problems.h"
#include "tests/unit/partition/small_plans.h"

namespace tessera {
namespace {

Problem CausalProblem(int64_t tokens) {
  return SmallProblem(*Mask::Causal(tokens, tokens), tokens);
}

TEST(PredictedBytes, IsWhatAPersonWouldCount) {
  const Problem problem = CausalProblem(8);
  // Rank 1 attends rank 0's four tokens: 4 rows x 2 heads x (8 + 6) x 2 bytes. Rank 0 attends nothing of rank 1.
  EXPECT_EQ(PredictedBytes(*MakeSpec(problem, "ring", 2)), 4 * 2 * 14 * 2);
  // Two ranks swap halves: each sends 4 rows x 2 query heads of q (8), o (6, both 2 bytes) and lse (4 bytes), and 4
  // rows x 1 key/value head of k and v.
  EXPECT_EQ(PredictedBytes(*MakeSpec(problem, "ulysses", 2)), 2 * (4 * 2 * (8 * 2 + 6 * 2 + 4) + 4 * 1 * 14 * 2));
  // Only rank 1's four queries ask rank 0: 4 rows x 4 heads of q down (2 bytes), o and lse up (4 bytes).
  EXPECT_EQ(PredictedBytes(*MakeSpec(problem, "tree", 2)), 4 * 4 * (8 * 2 + 7 * 4));
}

TEST(PredictedBytes, IsWhatAPersonWouldCountOfTheBackwardPass) {
  const Problem problem = CausalProblem(8);
  // The same keys and values as forward (2 bytes), and as many elements of their gradients back (4 bytes).
  EXPECT_EQ(PredictedBytes(*MakeSpec(problem, "ring", 2, Pass::kBackward)), 4 * 2 * 14 * (2 + 4));
  EXPECT_EQ(
      PredictedBytes(*MakeSpec(problem, "allgather", 2, Pass::kBackward)),
      2 * PredictedBytes(*MakeSpec(problem, "allgather", 2)) + PredictedBytes(*MakeSpec(problem, "allgather", 2)));
  // Swapped halves: q (8) and do (6), 2 bytes each, lse and delta there, dq (8, 2 bytes) back; k and v there, their
  // gradients (4 bytes) back.
  EXPECT_EQ(PredictedBytes(*MakeSpec(problem, "ulysses", 2, Pass::kBackward)),
            2 * (4 * 2 * (8 * 2 + 6 * 2 + 4 + 4 + 8 * 2) + 4 * 1 * 14 * (2 + 4)));
  // q, do, lse and delta down, dq (4 bytes) up.
  EXPECT_EQ(PredictedBytes(*MakeSpec(problem, "tree", 2, Pass::kBackward)), 4 * 4 * (8 * 2 + 6 * 2 + 4 + 4 + 8 * 4));
}

void ExpectPredicted(const Problem& problem, const std::string& strategy, int ranks, Pass pass) {
  const StatusOr<PlanSpec> spec = MakeSpec(problem, strategy, ranks, pass);
  if (!spec.ok()) return;  // some strategies need a rank count they can factor
  const RankCost total = CountPlan(BuildPlan(*spec)).Total();
  const std::string where = absl::StrCat(strategy, pass == Pass::kForward ? " forward" : " backward", " ranks ", ranks,
                                         " tokens ", problem.query_tokens);
  EXPECT_EQ(total.bytes_received, PredictedBytes(*spec)) << where;
  EXPECT_EQ(total.bytes_sent, total.bytes_received) << where;
  EXPECT_EQ(total.messages_sent, total.messages_received) << where;
  EXPECT_EQ(total.pairs, problem.mask.Area() * problem.query_heads) << where;
  const double products = 3 * problem.qk_width + 2 * problem.v_width;
  EXPECT_EQ(total.flops, pass == Pass::kForward ? problem.Flops() : 2 * total.pairs * products) << where;
}

TEST(PredictedBytes, EqualsTheBytesOfThePlansSteps) {
  for (const int ranks : testing::RankCounts()) {
    if (ranks > 9 && ranks % 4 != 0 && ranks != 25) continue;
    for (const int64_t tokens : {7, 130, 321}) {
      const std::vector<int64_t> documents{0, tokens / 5, tokens / 5, tokens / 2, tokens};
      for (const Mask& mask :
           {Mask(), *Mask::Full(tokens, tokens), *Mask::Causal(tokens, tokens), *Mask::Causal(tokens, tokens, {5, 0}),
            *Mask::Causal(tokens, tokens, {2, 3}), *Mask::Documents(tokens, documents, SliceType::kCausal)}) {
        Problem problem = CausalProblem(tokens);
        problem.mask = mask;
        for (const std::string& strategy : AllStrategies(ranks)) {
          for (const Pass pass : {Pass::kForward, Pass::kBackward}) ExpectPredicted(problem, strategy, ranks, pass);
        }
      }
    }
  }
}

TEST(CountPlan, TakesTheMaximumFieldByField) {
  PlanCost cost;
  cost.ranks = {{1, 20, 3, 40, 5, 60, 7}, {10, 2, 30, 4, 50, 6, 70}};
  EXPECT_EQ(cost.Max(), (RankCost{10, 20, 30, 40, 50, 60, 70}));
  EXPECT_EQ(cost.Total(), (RankCost{11, 22, 33, 44, 55, 66, 77}));
}

TEST(Simulate, AddsUpASingleRank) {
  const Plan plan = BuildPlan(*MakeSpec(CausalProblem(64), "ring", 1));
  MachineModel machine;
  machine.flops_per_second = 1e6;
  machine.step_overhead_seconds = 0;
  const Price price = Simulate(plan, machine);
  EXPECT_NEAR(price.seconds, plan.spec.problem.Flops() / 1e6, 1e-9);
  EXPECT_NEAR(price.exposed_communication_seconds, 0, 1e-12);
}

TEST(Simulate, HidesCommunicationBehindComputeWhenTheLinkIsFast) {
  const Plan plan = BuildPlan(*MakeSpec(CausalProblem(4096), "zigzag", 8));
  MachineModel slow_compute;
  slow_compute.flops_per_second = 1e7;
  const Price hidden = Simulate(plan, slow_compute);
  EXPECT_LT(hidden.exposed_communication_seconds, 0.05 * hidden.seconds);
  MachineModel slow_link;
  slow_link.link_bytes_per_second = 1e5;
  const Price exposed = Simulate(plan, slow_link);
  EXPECT_GT(exposed.exposed_communication_seconds, 0.9 * exposed.seconds);
}

void ExpectOrdered(const std::string& strategy, Pass pass) {
  const StatusOr<PlanSpec> spec = MakeSpec(CausalProblem(100), strategy, 6, pass);
  if (!spec.ok()) return;
  const Plan plan = BuildPlan(*spec);
  const Price price = Simulate(plan, {});
  for (const RankProgram& program : plan.programs) {
    const std::vector<TimedStep>& times = price.timeline[program.rank];
    for (size_t step = 0; step < program.steps.size(); ++step) {
      EXPECT_LT(times[step].start_seconds, times[step].end_seconds);
      EXPECT_LE(times[step].end_seconds, price.seconds);
      for (const StepId after : program.steps[step].after) {
        EXPECT_GE(times[step].start_seconds, times[after].end_seconds) << strategy << " rank " << program.rank;
      }
    }
  }
}

TEST(Simulate, RespectsDependenciesOfEveryStep) {
  for (const std::string& strategy : AllStrategies(6)) {
    for (const Pass pass : {Pass::kForward, Pass::kBackward}) ExpectOrdered(strategy, pass);
  }
}

TEST(Simulate, GivesInfinityForAPlanThatCannotFinish) {
  Plan plan = BuildPlan(*MakeSpec(CausalProblem(64), "ring", 2));
  plan.programs[0].steps.clear();
  EXPECT_TRUE(std::isinf(Simulate(plan, {}).seconds));
}

TEST(EstimateSeconds, IsNearTheSimulation) {
  MachineModel machine;
  for (const std::string& strategy : AllStrategies(8)) {
    for (const Pass pass : {Pass::kForward, Pass::kBackward}) {
      const StatusOr<PlanSpec> spec = MakeSpec(CausalProblem(2048), strategy, 8, pass);
      if (!spec.ok()) continue;
      for (const auto& [flops, factor] :
           {std::pair(1e9, 3), std::pair(1e12, 4)}) {  // bound by compute; by communication
        machine.flops_per_second = flops;
        const double simulated = Simulate(BuildPlan(*spec), machine).seconds;
        const double estimated = EstimateSeconds(*spec, machine);
        EXPECT_GT(estimated, simulated / factor) << strategy << " " << static_cast<int>(pass) << " " << flops;
        EXPECT_LT(estimated, simulated * factor) << strategy << " " << static_cast<int>(pass) << " " << flops;
      }
    }
  }
}

TEST(EstimateSeconds, ServesTensOfThousandsOfRanks) {
  for (const char* strategy : {"zigzag", "striped", "allgather"}) {
    EXPECT_GT(EstimateSeconds(*MakeSpec(CausalProblem(int64_t{1} << 22), strategy, 65536), {}), 0);
  }
}

TEST(CommonTokens, IsTheIntersectionOfTwoProgressions) {
  for (const Segment& a : {Segment{0, 10, 1}, Segment{3, 7, 4}, Segment{5, 1, 1}, Segment{2, 9, 6}}) {
    for (int64_t begin = 0; begin < 12; ++begin) {
      for (int64_t stride = 1; stride < 8; ++stride) {
        const Segment b{begin, 8, stride};
        std::vector<int64_t> expected, got;
        for (int64_t token = 0; token < 100; ++token) {
          const auto in = [token](const Segment& s) {
            return token >= s.begin && token <= s.last() && (token - s.begin) % s.stride == 0;
          };
          if (in(a) && in(b)) expected.push_back(token);
        }
        const Segment common = CommonTokens(a, b);
        for (int64_t row = 0; row < common.count; ++row) got.push_back(common.token(row));
        EXPECT_EQ(got, expected);
      }
    }
  }
}

}  // namespace
}  // namespace tessera
