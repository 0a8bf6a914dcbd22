#include <gtest/gtest.h>

#include "collectives/dryrun/communicator.h"

namespace tessera {
namespace {

TEST(DryRun, CountsForThousandRanksWithoutBuffers) {
  constexpr int kRanks = 1024;
  auto world = MakeDryRunWorld(kRanks);
  ASSERT_TRUE(world.ok()) << world.status();
  const std::vector<int64_t> counts(kRanks, 100), displacements(kRanks, 100);
  for (auto& comm : *world) {
    auto request =
        comm->AllGatherV(ConstBytes(static_cast<const std::byte*>(nullptr), 100), nullptr, counts, displacements);
    ASSERT_TRUE(request.ok()) << request.status();
    ASSERT_TRUE(Wait(*comm, *request, "all-gather").ok());
    EXPECT_EQ(comm->traffic(), (Traffic{100 * (kRanks - 1), 100 * (kRanks - 1), kRanks - 1, kRanks - 1}));
    ASSERT_TRUE(comm->AllReduceSum(std::span(static_cast<const float*>(nullptr), 2 * kRanks),
                                   std::span(static_cast<float*>(nullptr), 2 * kRanks))
                    .ok());
    EXPECT_EQ(comm->traffic().bytes_sent, (100 + 8 + 8) * (kRanks - 1));
  }
}

TEST(DryRun, SplitFollowsTheRuleThroughNestedSplits) {
  // Rows of 4 in a world of 12, then pairs in each row.
  const DryRunSplitRule rule = [](int r, int split) {
    return split == 0 ? DryRunSplit{r / 4, r} : DryRunSplit{r % 4 / 2, -r};
  };
  auto comm = MakeDryRunCommunicator(6, 12, rule);
  ASSERT_TRUE(comm.ok());
  auto row = (*comm)->Split(1, 6);
  ASSERT_TRUE(row.ok()) << row.status();
  EXPECT_EQ((*row)->size(), 4);
  EXPECT_EQ((*row)->rank(), 2);
  auto pair = (*row)->Split(1, -6);
  ASSERT_TRUE(pair.ok()) << pair.status();
  EXPECT_EQ((*pair)->size(), 2);
  EXPECT_EQ((*pair)->rank(), 1);
}

TEST(DryRun, SplitRefusals) {
  auto without_rule = MakeDryRunCommunicator(0, 2);
  ASSERT_TRUE(without_rule.ok());
  EXPECT_EQ((*without_rule)->Split(0, 0).status().message(),
            "a dry run needs a split rule to know the colours of the others");
  auto with_rule = MakeDryRunCommunicator(0, 2, [](int r, int) { return DryRunSplit{r, 0}; });
  ASSERT_TRUE(with_rule.ok());
  EXPECT_EQ((*with_rule)->Split(1, 5).status().message(),
            "the split rule expects colour 0 and key 0 of rank 0, not 1 and 5");
  EXPECT_EQ(MakeDryRunCommunicator(2, 2).status().message(), "rank 2 is not a rank of a world of 2");
}

}  // namespace
}  // namespace tessera
