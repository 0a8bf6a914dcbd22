// Threads of ranks that share a node.
#include "launcher/affinity.h"

#include <gtest/gtest.h>

#include <bit>
#include <vector>

#include "launcher/host.h"

namespace tessera::launcher {
namespace {

CoreSet Cores(uint64_t host, int begin, int end) {
  CoreSet set;
  set.host = host;
  for (int i = begin; i < end; ++i) set.bits[i / 64] |= uint64_t{1} << i % 64;
  return set;
}

TEST(CoreShare, UnboundRanksShareTheCoresOfTheirNode) {
  const std::vector<CoreSet> ranks(3, Cores(1, 0, 96));
  for (int rank = 0; rank < 3; ++rank) EXPECT_EQ(ThreadsOfShare(CoreShare(ranks, rank)), 32);
}

TEST(CoreShare, BoundRanksHaveTheirCoresForThemselves) {
  const std::vector<CoreSet> ranks = {Cores(1, 0, 16), Cores(1, 16, 80), Cores(1, 80, 81)};
  EXPECT_EQ(ThreadsOfShare(CoreShare(ranks, 0)), 16);
  EXPECT_EQ(ThreadsOfShare(CoreShare(ranks, 1)), 64);
  EXPECT_EQ(ThreadsOfShare(CoreShare(ranks, 2)), 1);
}

TEST(CoreShare, RanksBoundToASocketShareIt) {
  const std::vector<CoreSet> ranks = {Cores(1, 0, 32), Cores(1, 0, 32), Cores(1, 32, 64), Cores(1, 32, 64)};
  for (int rank = 0; rank < 4; ++rank) EXPECT_EQ(ThreadsOfShare(CoreShare(ranks, rank)), 16);
}

TEST(CoreShare, OtherNodesDoNotCount) {
  const std::vector<CoreSet> ranks = {Cores(1, 0, 8), Cores(2, 0, 8), Cores(2, 0, 8)};
  EXPECT_EQ(ThreadsOfShare(CoreShare(ranks, 0)), 8);
  EXPECT_EQ(ThreadsOfShare(CoreShare(ranks, 2)), 4);
}

TEST(CoreShare, IsLessThanACoreWhereRanksOutnumberCores) {
  EXPECT_NEAR(CoreShare(std::vector<CoreSet>(5, Cores(1, 0, 2)), 4), 0.4, 1e-12);
}

TEST(CoreShare, IsAtLeastOneThread) {
  EXPECT_EQ(ThreadsOfShare(CoreShare(std::vector<CoreSet>(5, Cores(1, 0, 2)), 4)), 1);
  EXPECT_EQ(ThreadsOfShare(CoreShare(std::vector<CoreSet>(1), 0)), 1) << "where the system does not tell";
}

TEST(CoreShare, OfThisProcessAloneIsWhatItMayUse) {
  const CoreSet own = UsableCoreSet();
  int cores = 0;
  for (const uint64_t word : own.bits) cores += std::popcount(word);
  EXPECT_EQ(cores, UsableCores());
  EXPECT_EQ(ThreadsOfShare(CoreShare({&own, 1}, 0)), UsableCores());
}

}  // namespace
}  // namespace tessera::launcher
