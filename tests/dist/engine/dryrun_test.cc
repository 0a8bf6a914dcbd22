// Every communication step of every strategy over the counting communicator, 1 to 64 ranks: what the engine hands to a
// communicator is what the closed form predicts.
#include <gtest/gtest.h>

#include "partition/cost.h"
#include "partition/planner.h"
#include "tests/support/dry_run.h"
#include "tests/support/problems.h"

namespace tessera {
namespace {

class DryRun : public ::testing::TestWithParam<Pass> {};

TEST_P(DryRun, CountsWhatIsPredictedFor1To64Ranks) {
  Problem problem;
  problem.query_tokens = problem.key_tokens = 131;
  problem.query_heads = 6;
  problem.kv_heads = 3;
  problem.qk_width = 3;
  problem.v_width = 2;
  problem.mask = Mask::Causal(131, 131).value();
  for (const int ranks : testing::RankCounts()) {
    for (const std::string& strategy : StrategyNames(ranks)) {
      const PlanSpec spec =
          MakePlanSpec(problem, {.strategy = strategy, .ranks = ranks, .ranks_per_node = 0, .pass = GetParam()})
              .value();
      const Plan plan = BuildPlan(spec);
      int64_t received = 0;
      for (int rank = 0; rank < ranks; ++rank) {
        const auto bytes = testing::DryRunBytesReceived(plan.programs, rank, problem.dtype);
        ASSERT_TRUE(bytes.ok()) << strategy << " " << ranks << ": " << bytes.status();
        received += *bytes;
      }
      EXPECT_EQ(received, PredictedBytes(spec)) << strategy << " on " << ranks << " ranks";
    }
  }
}
INSTANTIATE_TEST_SUITE_P(Passes, DryRun, ::testing::Values(Pass::kForward, Pass::kBackward));

// Heads from 1 to 128 that divide nothing; more ranks than heads.
TEST(DryRunDecode, CountsWhatIsPredictedFor1To64Ranks) {
  for (const int ranks : testing::RankCounts()) {
    for (const DecodeMethod method : AllDecodeMethods()) {
      for (const int heads : {1, 7, 61, 128}) {
        DecodeSpec spec;
        spec.method = method;
        spec.ranks = ranks;
        spec.groups = method == DecodeMethod::kTpla && ranks % 2 == 0 ? 2 : 1;
        spec.rows = 1 + (ranks + heads) % 3;
        spec.heads = heads;
        spec.qk_width = 5;
        spec.v_width = 3;
        const DecodePlan plan = BuildDecodePlan(spec);
        int64_t received = 0;
        for (int rank = 0; rank < ranks; ++rank) {
          const auto bytes = testing::DryRunBytesReceived(plan.programs, rank, spec.dtype);
          ASSERT_TRUE(bytes.ok()) << ToString(spec) << ": " << bytes.status();
          received += *bytes;
        }
        EXPECT_EQ(received, PredictedBytes(spec)) << ToString(spec);
      }
    }
  }
}

}  // namespace
}  // namespace tessera
