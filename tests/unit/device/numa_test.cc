// Decisions about NUMA nodes, over descriptions of machines.
#include "runtime/device/numa.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cstring>
#include <filesystem>
#include <fstream>

namespace tessera {
namespace {

CoreMask Mask(std::string_view list) {
  const StatusOr<CoreMask> mask = ParseCoreList(list);
  EXPECT_TRUE(mask.ok()) << mask.status();
  return mask.ok() ? *mask : CoreMask{};
}

TEST(CoreList, IsWhatTheSystemWrites) {
  EXPECT_EQ(Mask("0-3,8,10-11\n"), CoreMask(0xd0f));
  EXPECT_EQ(Mask("64-127"), CoreMask(~uint64_t{0}) << 64);
  EXPECT_EQ(Mask("1023"), CoreMask(1) << 1023);
  EXPECT_TRUE(Mask("\n").none());
}

TEST(CoreList, IsWrittenAsItIsRead) {
  for (const char* list : {"", "3", "0-2,64,1022-1023", "0-1023"}) EXPECT_EQ(ToString(Mask(list)), list);
}

TEST(CoreList, RefusesWhatIsNone) {
  for (const char* list : {"x", "1-", "3-1", "1,", ",1", "1 2", "1024", "0-1024", "-1"}) {
    EXPECT_EQ(ParseCoreList(list).status().message(),
              absl::StrCat("\"", list, "\" is no list of cores below 1024 such as 0-3,8"));
  }
}

class Folder : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto* const test = ::testing::UnitTest::GetInstance()->current_test_info();
    folder_ = std::filesystem::path(::testing::TempDir()) / absl::StrCat("numa_", test->name());
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  void AddNode(const std::string& name, const std::string& cores) {
    std::filesystem::create_directories(folder_ / name);
    std::ofstream(folder_ / name / "cpulist") << cores << "\n";
  }
  std::filesystem::path folder_;
};

TEST_F(Folder, NodesAreSortedAndThoseWithoutCoresLeftOut) {
  AddNode("node10", "8-11");
  AddNode("node2", "0-3");
  AddNode("node3", "");
  AddNode("node2x", "4");
  AddNode("power", "4");
  const std::vector<NumaNode> nodes = ReadNumaNodes(folder_.string());
  ASSERT_EQ(nodes.size(), 2u);
  EXPECT_EQ(nodes[0].id, 2);
  EXPECT_EQ(nodes[0].cores, Mask("0-3"));
  EXPECT_EQ(nodes[1].id, 10);
  EXPECT_EQ(nodes[1].cores, Mask("8-11"));
}

TEST_F(Folder, NoneWhereItIsNotUnderstood) {
  EXPECT_TRUE(ReadNumaNodes((folder_ / "absent").string()).empty());
  AddNode("node0", "0-3");
  EXPECT_TRUE(ReadNumaNodes((folder_ / "node0" / "cpulist").string()).empty()) << "no folder";
  EXPECT_EQ(ReadNumaNodes(folder_.string()).size(), 1u);
  AddNode("node1", "four to seven");
  EXPECT_TRUE(ReadNumaNodes(folder_.string()).empty());
}

TEST(Interleave, OverTheNodesThatTheCoresAreOf) {
  const std::vector<NumaNode> nodes = {{0, Mask("0-3")}, {1, Mask("4-7")}, {5, Mask("8-11")}};
  EXPECT_EQ(NodesToInterleave(nodes, Mask("0-11")), 0x23u);
  EXPECT_EQ(NodesToInterleave(nodes, Mask("3,8")), 0x21u);
  EXPECT_EQ(NodesToInterleave(nodes, Mask("4-6")), 0u) << "one node's";
  EXPECT_EQ(NodesToInterleave(nodes, Mask("900")), 0u);
  EXPECT_EQ(NodesToInterleave({}, Mask("0-11")), 0u);
  EXPECT_EQ(NodesToInterleave(std::vector<NumaNode>{{0, Mask("0")}, {64, Mask("1")}}, Mask("0-1")), 0u);
}

TEST(Interleave, TheSystemTakesIt) {
  const std::vector<NumaNode> nodes = ReadNumaNodes();
  if (nodes.empty()) GTEST_SKIP() << "this system tells nothing of NUMA nodes";
  constexpr size_t kBytes = 8 << 20;
  void* const memory = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(memory, MAP_FAILED);
  const bool taken = InterleavePages(memory, kBytes, uint64_t{1} << nodes[0].id);
  std::memset(memory, 1, kBytes);
  munmap(memory, kBytes);
  if (!taken) GTEST_SKIP() << "this system does not let a process choose nodes";
}

}  // namespace
}  // namespace tessera
