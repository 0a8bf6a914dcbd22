// Random decode steps over mpirun: this process is one rank and judges its own heads.
#include <gtest/gtest.h>

#include "collectives/mpi/communicator.h"
#include "partition/cost.h"
#include "tests/support/decode_case.h"
#include "tests/support/problems.h"

namespace tessera {
namespace {

TEST(MpiDecode, EveryMethodMatchesFp64AndCountsItsBytes) {
  const auto world = MakeMpiWorld();
  ASSERT_TRUE(world.ok()) << world.status();
  Communicator& comm = **world;
  for (const DecodeMethod method : AllDecodeMethods()) {
    for (int i = 0; i < 6; ++i) {
      const std::string name = absl::StrCat("decode/mpi/", std::string(Name(method)), "/", comm.size(), "/", i);
      auto generator = testing::GeneratorFor(name);
      const testing::DecodeCase problem = testing::RandomDecodeCase(method, comm.size(), generator);
      SCOPED_TRACE(absl::StrCat(name, ": ", problem.ToString()));
      testing::DecodeResult result;
      ASSERT_EQ(testing::RunDecodeRank(comm, problem, result), absl::OkStatus());
      EXPECT_EQ(testing::Judge(problem, comm.rank(), result), "");
      // Counts stay far below 2^24, so a float sum is exact.
      const float received = static_cast<float>(result.stats.traffic.bytes_received);
      float total = 0;
      auto request = comm.AllReduceSum({&received, 1}, {&total, 1});
      ASSERT_TRUE(request.ok() && Wait(comm, *request, "summing traffic").ok());
      EXPECT_EQ(static_cast<int64_t>(total), PredictedBytes(problem.spec));
    }
  }
}

}  // namespace
}  // namespace tessera
