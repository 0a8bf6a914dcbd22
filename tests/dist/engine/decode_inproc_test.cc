// Distributed decode over threads as ranks: random steps, every method, 1 to 8 ranks.
#include <gtest/gtest.h>

#include "collectives/inproc/world.h"
#include "partition/cost.h"
#include "tests/support/decode_case.h"
#include "tests/support/problems.h"

namespace tessera {
namespace {

using testing::DecodeCase;
using testing::DecodeResult;

class RandomDecode : public ::testing::TestWithParam<int> {};

TEST_P(RandomDecode, EveryMethodMatchesFp64AndCountsItsBytes) {
  const int ranks = GetParam();
  constexpr int kProblems = testing::Problems(10);  // times 5 methods and 8 rank counts: 400 problems
  for (const DecodeMethod method : AllDecodeMethods()) {
    for (int i = 0; i < kProblems; ++i) {
      const std::string name = absl::StrCat("decode/inproc/", std::string(Name(method)), "/", ranks, "/", i);
      auto generator = testing::GeneratorFor(name);
      const DecodeCase problem = testing::RandomDecodeCase(method, ranks, generator);
      SCOPED_TRACE(absl::StrCat(name, ": ", problem.ToString()));
      std::vector<DecodeResult> results(ranks);
      InprocOptions options;
      options.eager = i % 2 == 0;  // rendezvous semantics every other time
      if (i % 5 == 0) options.longest_delay = std::chrono::microseconds(200);
      const Status status = RunRanks(ranks, options, [&](Communicator& comm) {
        return testing::RunDecodeRank(comm, problem, results[comm.rank()]);
      });
      ASSERT_EQ(status, absl::OkStatus());
      int64_t received = 0;
      for (int rank = 0; rank < ranks; ++rank) {
        EXPECT_EQ(testing::Judge(problem, rank, results[rank]), "") << "rank " << rank;
        received += results[rank].stats.traffic.bytes_received;
      }
      EXPECT_EQ(received, PredictedBytes(problem.spec));
    }
  }
}
INSTANTIATE_TEST_SUITE_P(Ranks, RandomDecode, ::testing::Range(1, 9));

// How queries come to a rank does not show in what it computes.
TEST(Decode, GatheredAndReplicatedQueriesGiveTheSameBits) {
  auto generator = testing::GeneratorFor("decode/queries/1");
  DecodeCase problem = testing::RandomDecodeCase(DecodeMethod::kReplicatedQuery, 3, generator);
  std::vector<DecodeResult> replicated(3), gathered(3);
  ASSERT_GT(problem.rows(), 0);
  ASSERT_EQ(
      RunRanks(3, {},
               [&](Communicator& comm) { return testing::RunDecodeRank(comm, problem, replicated[comm.rank()]); }),
      absl::OkStatus());
  problem.spec.method = DecodeMethod::kGatherQuery;
  ASSERT_EQ(
      RunRanks(3, {}, [&](Communicator& comm) { return testing::RunDecodeRank(comm, problem, gathered[comm.rank()]); }),
      absl::OkStatus());
  for (int rank = 0; rank < 3; ++rank) {
    EXPECT_EQ(replicated[rank].output, gathered[rank].output);
    EXPECT_EQ(replicated[rank].lse, gathered[rank].lse);
  }
}

}  // namespace
}  // namespace tessera
