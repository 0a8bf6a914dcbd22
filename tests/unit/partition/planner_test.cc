// Properties of every planner: verified statically, bytes equal to the closed form, any rank count.
#include "partition/planner.h"

#include <gtest/gtest.h>

#include "partition/cost.h"
#include "partition/verify.h"
#include "tests/support/problems.h"

namespace tessera {
namespace {

void ExpectSound(const Problem& problem, const std::string& strategy, int ranks, Pass pass = Pass::kForward) {
  SCOPED_TRACE(absl::StrCat(strategy, " on ", ranks, " ranks: ", problem.ToString()));
  PlanOptions options;
  options.strategy = strategy;
  options.ranks = ranks;
  options.pass = pass;
  const auto spec = MakePlanSpec(problem, options);
  ASSERT_TRUE(spec.ok()) << spec.status();
  const Plan plan = BuildPlan(*spec);
  const Status status = Verify(plan);
  EXPECT_TRUE(status.ok()) << status;
  const RankCost total = CountPlan(plan).Total();
  EXPECT_EQ(total.bytes_received, PredictedBytes(*spec));
  EXPECT_EQ(total.bytes_sent, total.bytes_received);
  EXPECT_EQ(total.pairs, problem.mask.Area() * problem.query_heads);
}

class Planners : public ::testing::TestWithParam<int> {};

TEST_P(Planners, RandomProblemsAreSoundUnderEveryStrategy) {
  const int ranks = GetParam();
  const int problems = testing::Problems(ranks <= 8 ? 60 : ranks <= 64 ? 6 : 2);
  for (int i = 0; i < problems; ++i) {
    auto generator = testing::GeneratorFor(absl::StrCat("planner/", ranks, "/", i));
    const Problem problem = testing::RandomProblem(generator, ranks <= 8 ? 100 : 400);
    for (const std::string& strategy : StrategyNames(ranks)) {
      ExpectSound(problem, strategy, ranks, Pass::kForward);
      ExpectSound(problem, strategy, ranks, Pass::kBackward);
    }
  }
}
INSTANTIATE_TEST_SUITE_P(Ranks, Planners,
                         ::testing::Values(1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 17, 24, 31, 32, 48, 61, 64, 128, 256));

TEST(Planners, EveryRankCountTo64CountsItsPredictedBytes) {
  Problem problem;
  problem.query_tokens = problem.key_tokens = 1031;
  problem.query_heads = 6;
  problem.kv_heads = 3;
  problem.qk_width = 24;
  problem.v_width = 16;
  problem.mask = Mask::Causal(1031, 1031).value();
  for (const int ranks : testing::RankCounts()) {
    for (const std::string& strategy : StrategyNames(ranks)) {
      const PlanSpec spec = MakePlanSpec(problem, {.strategy = strategy, .ranks = ranks}).value();
      EXPECT_EQ(CountPlan(BuildPlan(spec)).Total().bytes_received, PredictedBytes(spec)) << strategy << " " << ranks;
    }
  }
}

TEST(Planners, ThousandsOfRanksInOneProcess) {
  const int ranks = testing::kManyRanks;
  const int side = ranks == 4096 ? 64 : 16;
  Problem problem;
  problem.query_tokens = problem.key_tokens = 1 << 16;
  problem.query_heads = 64;
  problem.kv_heads = 8;
  problem.qk_width = problem.v_width = 128;
  // Dense at this scale where the plan is short, windowed where it is a ring.
  problem.mask = Mask::Causal(problem.query_tokens, problem.key_tokens, {.left = 100}).value();
  for (const char* strategy : {"ring", "zigzag", "allgather", "double-ring:64", "tree"})
    ExpectSound(problem, strategy, ranks);
  problem.mask = Mask::Causal(problem.query_tokens, problem.key_tokens).value();
  ExpectSound(problem, absl::StrCat("grid:", side, "x", side), ranks);
}

TEST(Planners, ADenseRingAtFourThousandRanksSendsEveryBlockRoundOnce) {
  Problem problem;
  problem.query_tokens = problem.key_tokens = 1 << 20;
  problem.qk_width = problem.v_width = 64;
  problem.mask = Mask::Full(1 << 20, 1 << 20).value();
  const PlanSpec spec = MakePlanSpec(problem, {.strategy = "ring", .ranks = 4096}).value();
  const RankProgram program = BuildRankProgram(spec, 1234);
  const RankCost cost = CountProgram(spec, program);
  EXPECT_EQ(cost.messages_received, 2 * 4095);
  EXPECT_EQ(cost.bytes_received, int64_t{4095} * 256 * 2 * 64 * 2);
}

TEST(Planners, MaskedChunksAreNeitherSentNorComputed) {
  Problem problem;
  problem.query_tokens = problem.key_tokens = 800;
  problem.qk_width = problem.v_width = 8;
  problem.mask = Mask::Causal(800, 800, {.left = 99}).value();
  const PlanSpec spec = MakePlanSpec(problem, {.strategy = "ring", .ranks = 8}).value();
  const Plan plan = BuildPlan(spec);
  // Each rank needs the last 99 keys of its left neighbour and nothing else.
  EXPECT_EQ(CountPlan(plan).Total().bytes_received, 7 * 99 * (8 + 8) * 2);
  EXPECT_EQ(CountPlan(plan).Total().messages_received, 7 * 2);
}

TEST(Strategies, RefusalsNameTheReasonAndAWayOut) {
  Problem problem;
  problem.query_tokens = problem.key_tokens = 8;
  problem.qk_width = problem.v_width = 8;
  const auto error = [&](const char* strategy, int ranks) {
    return std::string(MakePlanSpec(problem, {.strategy = strategy, .ranks = ranks}).status().message());
  };
  EXPECT_EQ(error("grid:2x3", 4),
            "strategy 'grid:2x3' cannot serve this: 2 x 3 needs 6 ranks and there are 4; 'grid:2x2' can");
  EXPECT_EQ(error("double-ring:3", 4),
            "strategy 'double-ring:3' cannot serve this: 4 ranks do not divide into 3 nodes; 'zigzag' can");
  EXPECT_EQ(error("grid:2", 4), "strategy 'grid:2': '2' must be HxS, head ranks by sequence ranks, such as grid:2x4");
  EXPECT_NE(error("spiral", 4).find("strategy 'spiral' is unknown; it must be auto, ring,"), std::string::npos);
  EXPECT_EQ(error("ring", 0), "ranks is 0; it must be from 1 to 65536");
  problem.qk_width = 300;
  EXPECT_EQ(error("ring", 1), "problem: qk_width is 300; it must be from 1 to 256");
  problem.qk_width = 8;
  problem.query_heads = 5;
  problem.kv_heads = 2;
  EXPECT_EQ(error("ring", 1), "problem: query_heads is 5 and kv_heads 2; query_heads must be a multiple of kv_heads");
}

TEST(Strategies, AutoTakesTheCheapestEstimate) {
  Problem problem;
  problem.query_tokens = problem.key_tokens = 4096;
  problem.query_heads = problem.kv_heads = 8;
  problem.qk_width = problem.v_width = 64;
  problem.mask = Mask::Causal(4096, 4096).value();
  const PlanSpec chosen = MakePlanSpec(problem, {.strategy = "auto", .ranks = 4}).value();
  for (const std::string& name : StrategyNames(4)) {
    const PlanSpec other = MakePlanSpec(problem, {.strategy = name, .ranks = 4}).value();
    EXPECT_LE(EstimateSeconds(chosen, {}), EstimateSeconds(other, {})) << chosen.strategy << " against " << name;
  }
}

TEST(Hashes, ChangeWithAnyField) {
  Problem problem;
  problem.query_tokens = problem.key_tokens = 64;
  problem.qk_width = problem.v_width = 8;
  problem.mask = Mask::Causal(64, 64).value();
  const PlanSpec spec = MakePlanSpec(problem, {.strategy = "ring", .ranks = 4}).value();
  EXPECT_EQ(Hash(spec), Hash(MakePlanSpec(problem, {.strategy = "ring", .ranks = 4}).value()));
  EXPECT_NE(Hash(spec), Hash(MakePlanSpec(problem, {.strategy = "zigzag", .ranks = 4}).value()));
  Problem other = problem;
  other.score.sink = true;
  EXPECT_NE(Hash(problem), Hash(other));
  other = problem;
  other.mask = Mask::Full(64, 64).value();
  EXPECT_NE(Hash(problem), Hash(other));
}

}  // namespace
}  // namespace tessera
