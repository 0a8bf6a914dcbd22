// Every communication step of every strategy over the counting communicator, 1 to 64 ranks: what the engine hands to a
// communicator is what the closed form predicts.
#include <gtest/gtest.h>

#include <algorithm>

#include "collectives/dryrun/communicator.h"
#include "partition/cost.h"
#include "partition/planner.h"
#include "runtime/engine/transfer.h"

namespace tessera {
namespace {

// Starts all communication steps of one rank and returns what its communicators counted.
StatusOr<int64_t> BytesReceived(const Plan& plan, int rank) {
  const PlanSpec& spec = plan.spec;
  const RankProgram& program = plan.programs[rank];
  const auto group_rule = [&](int world_rank, int split) {
    const std::vector<int>& group = plan.programs[world_rank].groups[split];
    return DryRunSplit{group[0], static_cast<int>(std::find(group.begin(), group.end(), world_rank) - group.begin())};
  };
  TESSERA_ASSIGN_OR_RETURN(const auto world, MakeDryRunCommunicator(rank, spec.mesh.size(), group_rule));
  Communicators comms;
  comms.world = world.get();
  for (size_t g = 0; g < program.groups.size(); ++g) {
    const DryRunSplit mine = group_rule(rank, static_cast<int>(g));
    TESSERA_ASSIGN_OR_RETURN(auto group, world->Split(mine.color, mine.key));
    comms.groups.push_back(std::move(group));
  }
  TESSERA_ASSIGN_OR_RETURN(SlotTable slots, SlotTable::Allocate(program, spec.problem.dtype));
  std::vector<std::vector<std::byte>> external;
  for (SlotId id = 0; id < static_cast<SlotId>(program.slots.size()); ++id) {
    if (!program.slots[id].external) continue;
    external.emplace_back(program.slots[id].bytes());
    slots.BindExternal(id, external.back().data());
  }
  for (const Step& step : program.steps) {
    if (IsCompute(step.body)) continue;
    TESSERA_ASSIGN_OR_RETURN(Transfer transfer, Transfer::Start(step.body, program, slots, comms));
    TESSERA_ASSIGN_OR_RETURN(const bool done, transfer.Test(slots));
    if (!done) return absl::InternalError("a dry run does not wait");
  }
  int64_t bytes = world->traffic().bytes_received;
  for (const auto& group : comms.groups) bytes += group == nullptr ? 0 : group->traffic().bytes_received;
  return bytes;
}

class DryRun : public ::testing::TestWithParam<Pass> {};

TEST_P(DryRun, CountsWhatIsPredictedFor1To64Ranks) {
  Problem problem;
  problem.query_tokens = problem.key_tokens = 131;
  problem.query_heads = 6;
  problem.kv_heads = 3;
  problem.qk_width = 3;
  problem.v_width = 2;
  problem.mask = Mask::Causal(131, 131).value();
  for (int ranks = 1; ranks <= 64; ++ranks) {
    for (const std::string& strategy : StrategyNames(ranks)) {
      const PlanSpec spec =
          MakePlanSpec(problem, {.strategy = strategy, .ranks = ranks, .ranks_per_node = 0, .pass = GetParam()})
              .value();
      const Plan plan = BuildPlan(spec);
      int64_t received = 0;
      for (int rank = 0; rank < ranks; ++rank) {
        const auto bytes = BytesReceived(plan, rank);
        ASSERT_TRUE(bytes.ok()) << strategy << " " << ranks << ": " << bytes.status();
        received += *bytes;
      }
      EXPECT_EQ(received, PredictedBytes(spec)) << strategy << " on " << ranks << " ranks";
    }
  }
}
INSTANTIATE_TEST_SUITE_P(Passes, DryRun, ::testing::Values(Pass::kForward, Pass::kBackward));

}  // namespace
}  // namespace tessera
