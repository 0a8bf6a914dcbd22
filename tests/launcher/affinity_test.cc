// Threads of ranks that share a node.
#include "launcher/affinity.h"

#include <gtest/gtest.h>

#include <thread>
#include <vector>

#include "launcher/host.h"

namespace tessera::launcher {
namespace {

CoreSet Cores(uint64_t host, int begin, int end) {
  CoreSet set;
  set.host = host;
  for (int i = begin; i < end; ++i) set.bits.set(i);
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
  EXPECT_EQ(static_cast<int>(own.bits.count()), UsableCores());
  EXPECT_EQ(ThreadsOfShare(CoreShare({&own, 1}, 0)), UsableCores());
}

// Two NUMA nodes of four cores, numbered as machines do: hyperthreads of node 0 behind the cores of node 1.
std::vector<NumaNode> TwoNodes() {
  return {{0, Cores(1, 0, 2).bits | Cores(1, 4, 6).bits}, {1, Cores(1, 2, 4).bits | Cores(1, 6, 8).bits}};
}

TEST(Placement, UnboundRanksDivideTheNumaNodes) {
  const std::vector<NumaNode> nodes = TwoNodes();
  const std::vector<CoreSet> two(2, Cores(1, 0, 8)), four(4, Cores(1, 0, 8));
  EXPECT_EQ(Placement(two, 0, nodes), nodes[0].cores);
  EXPECT_EQ(Placement(two, 1, nodes), nodes[1].cores);
  for (int rank = 0; rank < 4; ++rank) EXPECT_EQ(Placement(four, rank, nodes), nodes[rank / 2].cores) << rank;
}

TEST(Placement, ARankWhoseShareIsOfTwoNumaNodesKeepsBoth) {
  const std::vector<CoreSet> ranks(3, Cores(1, 0, 8));
  const std::vector<NumaNode> nodes = TwoNodes();
  EXPECT_EQ(Placement(ranks, 0, nodes), nodes[0].cores);
  EXPECT_EQ(Placement(ranks, 1, nodes), Cores(1, 0, 8).bits);
  EXPECT_EQ(Placement(ranks, 2, nodes), nodes[1].cores);
}

TEST(Placement, RanksThatOutnumberCoresAreDealtToo) {
  const std::vector<CoreSet> ranks(20, Cores(1, 0, 8));
  const std::vector<NumaNode> nodes = TwoNodes();
  for (int rank = 0; rank < 20; ++rank) EXPECT_EQ(Placement(ranks, rank, nodes), nodes[rank / 10].cores) << rank;
}

TEST(Placement, WhatTheLauncherBoundStays) {
  const std::vector<NumaNode> nodes = TwoNodes();
  const std::vector<CoreSet> own = {Cores(1, 0, 4), Cores(1, 4, 8)};
  EXPECT_EQ(Placement(own, 1, nodes), own[1].bits) << "cores of its own, of two NUMA nodes";
  const std::vector<CoreSet> socket(2, Cores(1, 0, 2));
  EXPECT_EQ(Placement(socket, 1, nodes), socket[1].bits) << "of one NUMA node";
  const std::vector<CoreSet> hosts = {Cores(1, 0, 8), Cores(2, 0, 8)};
  EXPECT_EQ(Placement(hosts, 1, nodes), hosts[1].bits) << "alone on its machine";
}

TEST(Placement, NothingChangesWhereNumaNodesAreNotKnown) {
  const std::vector<CoreSet> ranks(2, Cores(1, 0, 8));
  EXPECT_EQ(Placement(ranks, 0, {}), ranks[0].bits);
  EXPECT_EQ(Placement(ranks, 0, std::vector<NumaNode>{{0, Cores(1, 0, 4).bits}}), ranks[0].bits);
}

TEST(KeepTo, HoldsForThreadsStartedLater) {
  const CoreMask all = CoresOfThisThread();
  CoreMask one;
  for (size_t i = 0; i < one.size() && one.none(); ++i) one[i] = all[i];
  std::thread([&] {
    KeepTo(one);
    std::thread([&] { EXPECT_EQ(CoresOfThisThread(), one); }).join();
  }).join();
  EXPECT_EQ(CoresOfThisThread(), all);
}

}  // namespace
}  // namespace tessera::launcher
