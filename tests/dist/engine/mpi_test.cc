// The same random problems over mpirun: this process is one rank, results are gathered at every rank and judged.
#include <gtest/gtest.h>

#include "collectives/mpi/communicator.h"
#include "partition/cost.h"
#include "partition/planner.h"
#include "tests/support/distributed.h"

namespace tessera {
namespace {

// NaN marks rows of other ranks; every element is owned by exactly one rank, so a sum over zeros elsewhere gathers it.
// These problems are not in fp64, so every value is a float.
Status GatherEverywhere(Communicator& comm, std::vector<double>& values, const std::vector<bool>& mine) {
  std::vector<float> send(values.size()), sum(values.size());
  for (size_t i = 0; i < values.size(); ++i) send[i] = mine[i] ? static_cast<float>(values[i]) : 0.0f;
  TESSERA_ASSIGN_OR_RETURN(Request request, comm.AllReduceSum(send, sum));
  TESSERA_RETURN_IF_ERROR(Wait(comm, request, "gathering the result"));
  values.assign(sum.begin(), sum.end());
  return absl::OkStatus();
}

TEST(Mpi, EveryStrategyMatchesFp64AndCountsItsBytes) {
  const auto world = MakeMpiWorld();
  ASSERT_TRUE(world.ok()) << world.status();
  Communicator& comm = **world;
  const int ranks = comm.size();
  constexpr int kProblems = 12;
  for (int i = 0; i < kProblems; ++i) {
    const std::string name = absl::StrCat("engine/mpi/", ranks, "/", i);
    auto generator = testing::GeneratorFor(name);
    const Problem problem = testing::RandomProblem(generator, 150);
    const testing::Tensors tensors = testing::RandomTensors(problem, generator);
    for (const std::string& strategy : StrategyNames(ranks)) {
      SCOPED_TRACE(absl::StrCat(name, " ", strategy, " ", problem.ToString()));
      const auto spec = MakePlanSpec(problem, {.strategy = strategy, .ranks = ranks});
      ASSERT_TRUE(spec.ok()) << spec.status();
      testing::Result result = testing::EmptyResult(problem);
      ExecutionStats stats;
      const Status status = testing::RunRank(comm, *spec, tensors, {}, result, &stats);
      ASSERT_TRUE(status.ok()) << status;
      std::vector<bool> mine_lse(result.lse.size()), mine_output(result.output.size());
      for (int64_t row = 0; row < spec->query_layout.rows(comm.rank()); ++row) {
        const auto token = static_cast<int64_t>(spec->query_layout.ToGlobal(comm.rank(), LocalToken{row}));
        std::fill_n(mine_lse.begin() + token * problem.query_heads, problem.query_heads, true);
        std::fill_n(mine_output.begin() + token * problem.query_heads * problem.v_width,
                    problem.query_heads * problem.v_width, true);
      }
      ASSERT_TRUE(GatherEverywhere(comm, result.output, mine_output).ok());
      ASSERT_TRUE(GatherEverywhere(comm, result.lse, mine_lse).ok());
      EXPECT_EQ(testing::Judge(problem, tensors, result), "");
      // Counts stay far below 2^24, so a float sum is exact.
      const float received = static_cast<float>(stats.traffic.bytes_received);
      float total = 0;
      auto request = comm.AllReduceSum({&received, 1}, {&total, 1});
      ASSERT_TRUE(request.ok() && Wait(comm, *request, "summing traffic").ok());
      EXPECT_EQ(static_cast<int64_t>(total), PredictedBytes(*spec));
    }
  }
}

}  // namespace
}  // namespace tessera
