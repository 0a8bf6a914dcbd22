// Where GPUs, network cards and processors of a node are, and which GPU each of its ranks takes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <initializer_list>
#include <numeric>
#include <random>
#include <set>

#include "runtime/device/cuda/placement.h"

namespace tessera {
namespace {

using ::testing::ElementsAre;

CoreMask Processors(std::initializer_list<int> numbers) {
  CoreMask set;
  for (const int number : numbers) set.set(number);
  return set;
}

std::vector<std::string> Cards(const NodeTopology& topology, const std::string& pci_bus_id) {
  std::vector<std::string> cards;
  for (const NetworkCard& card : topology.NetworksNear(pci_bus_id)) {
    cards.push_back(card.name + ": " + std::string(Name(card.distance)));
  }
  return cards;
}

TEST(NodeTopology, KnowsWhatIsNearAGpu) {
  const StatusOr<NodeTopology> topology = NodeTopology::FromXml(TESSERA_TEST_TOPOLOGY);
  ASSERT_TRUE(topology.ok()) << topology.status();
  EXPECT_EQ(topology->ProcessorsNear("0000:01:00.0"), Processors({0, 1}));
  EXPECT_EQ(topology->ProcessorsNear("0000:81:00.0"), Processors({2, 3}));
  EXPECT_THAT(Cards(*topology, "0000:01:00.0"), ElementsAre("mlx5_0: switch", "eth0: node", "mlx5_1: node"));
  EXPECT_THAT(Cards(*topology, "0000:81:00.0"), ElementsAre("mlx5_1: switch", "eth0: host bridge", "mlx5_0: node"));
}

TEST(NodeTopology, SaysNothingOfADeviceItDoesNotKnow) {
  const StatusOr<NodeTopology> topology = NodeTopology::FromXml(TESSERA_TEST_TOPOLOGY);
  ASSERT_TRUE(topology.ok()) << topology.status();
  EXPECT_EQ(topology->ProcessorsNear("0000:55:00.0"), Processors({0, 1, 2, 3}));
  EXPECT_THAT(Cards(*topology, "0000:55:00.0"), ElementsAre());
}

TEST(NodeTopology, RefusesAFileThatIsNone) {
  EXPECT_EQ(NodeTopology::FromXml("/does/not/exist.xml").status().message(),
            "/does/not/exist.xml: hwloc cannot read it as a topology in XML");
}

TEST(NodeTopology, OfThisNodeHasTheProcessorsOfThisProcess) {
  const StatusOr<NodeTopology> topology = NodeTopology::OfThisNode();
  ASSERT_TRUE(topology.ok()) << topology.status();
  EXPECT_EQ(CoresOfThisThread() & ~topology->ProcessorsNear("none"), CoreMask());
}

// GPUs 0 and 1 are near processors 0 to 3, GPUs 2 and 3 near 4 to 7.
GpuSeen Gpu(uint8_t number) {
  GpuSeen gpu;
  gpu.uuid[0] = number + 1;
  gpu.near = number < 2 ? Processors({0, 1, 2, 3}) : Processors({4, 5, 6, 7});
  return gpu;
}
const std::vector<GpuSeen> kFour = {Gpu(0), Gpu(1), Gpu(2), Gpu(3)};

TEST(PlaceRanks, UnboundRanksTakeGpusInOrder) {
  const RankSeen unbound{Processors({0, 1, 2, 3, 4, 5, 6, 7}), kFour};
  EXPECT_THAT(PlaceRanks(std::vector<RankSeen>(4, unbound)).value(), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(PlaceRanks(std::vector<RankSeen>(2, unbound)).value(), ElementsAre(0, 1));
}

TEST(PlaceRanks, BoundRanksTakeTheGpusNearThem) {
  const RankSeen low{Processors({0, 1}), kFour}, high{Processors({6, 7}), kFour};
  EXPECT_THAT(PlaceRanks(std::vector<RankSeen>{high, low}).value(), ElementsAre(2, 1));
  EXPECT_THAT(PlaceRanks(std::vector<RankSeen>{high, low, high, low}).value(), ElementsAre(2, 0, 3, 1));
  // Three want the near pair; the one that is farthest away least goes elsewhere.
  const RankSeen across{Processors({3, 4}), kFour};
  EXPECT_THAT(PlaceRanks(std::vector<RankSeen>{across, low, low}).value(), ElementsAre(2, 0, 1));
}

TEST(PlaceRanks, RanksThatSeeOneGpuEachTakeIt) {
  const CoreMask any = Processors({0});
  const std::vector<RankSeen> ranks = {{any, {Gpu(3)}}, {any, {Gpu(0)}}, {any, {Gpu(2)}}};
  EXPECT_THAT(PlaceRanks(ranks).value(), ElementsAre(0, 0, 0));
}

TEST(PlaceRanks, ARankWithAChoiceLeavesTheOtherItsOnlyGpu) {
  const CoreMask near = Processors({0});
  const std::vector<RankSeen> ranks = {{near, {Gpu(0), Gpu(3)}}, {near, {Gpu(0)}}};
  EXPECT_THAT(PlaceRanks(ranks).value(), ElementsAre(1, 0));
}

TEST(PlaceRanks, RefusesMoreRanksThanGpusUnlessTheyMayShare) {
  const RankSeen rank{Processors({0}), {Gpu(0), Gpu(1)}};
  const Status status = PlaceRanks(std::vector<RankSeen>(4, rank)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(status.message(),
            "4 ranks on this node, but 2 GPUs: start at most 2 per node, or allow ranks to share a GPU (NCCL 2.30 or "
            "later)");
  EXPECT_THAT(PlaceRanks(std::vector<RankSeen>(4, rank), true).value(), ElementsAre(0, 1, 0, 1));
  EXPECT_EQ(PlaceRanks(std::vector<RankSeen>(1)).status().message(), "no rank of this node sees a GPU");
}

TEST(PlaceRanks, RefusesRanksThatSeeTooFewGpusEach) {
  const CoreMask any = Processors({0});
  const std::vector<RankSeen> ranks = {{any, {Gpu(0)}}, {any, {Gpu(0)}}, {any, {Gpu(1), Gpu(2)}}};
  EXPECT_EQ(PlaceRanks(ranks).status().message(),
            "rank 1 of this node finds every GPU that it sees taken by another: the ranks see 3 GPUs together, but too "
            "few of them each");
}

// Against every assignment there is.
TEST(PlaceRanks, NoAssignmentIsNearer) {
  for (int i = 0; i < 200; ++i) {
    const std::string name = absl::StrCat("placement/", i);
    std::seed_seq seed(name.begin(), name.end());
    std::mt19937 random(seed);
    std::vector<RankSeen> ranks(1 + random() % 4);
    for (RankSeen& rank : ranks) {
      for (int p = 0; p < 8; ++p) rank.processors[p] = random() % 2 == 0;
      rank.gpus = kFour;
    }
    const auto far = [&](const std::vector<int>& places) {
      int64_t sum = 0;
      for (size_t r = 0; r < ranks.size(); ++r) {
        const auto count = static_cast<int64_t>(ranks[r].processors.count());
        const auto away = static_cast<int64_t>((ranks[r].processors & ~kFour[places[r]].near).count());
        sum += count == 0 ? 0 : 1000 * away / count;
      }
      return sum;
    };
    const std::vector<int> places = PlaceRanks(ranks).value();
    EXPECT_EQ(std::set<int>(places.begin(), places.end()).size(), ranks.size());
    std::vector<int> order(kFour.size());
    std::iota(order.begin(), order.end(), 0);
    do {
      EXPECT_LE(far(places), far(order)) << i;
    } while (std::next_permutation(order.begin(), order.end()));
  }
}

}  // namespace
}  // namespace tessera
