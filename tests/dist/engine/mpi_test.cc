// The same random problems over mpirun: this process is one rank, results are gathered at every rank and judged.
#include <gtest/gtest.h>

#include "collectives/mpi/communicator.h"
#include "partition/cost.h"
#include "partition/planner.h"
#include "tests/support/distributed.h"
#include "tests/support/gather_result.h"

namespace tessera {
namespace {

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
      ASSERT_TRUE(testing::GatherResult(comm, *spec, result).ok());
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
