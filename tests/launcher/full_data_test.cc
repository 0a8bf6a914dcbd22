// The whole file of 16,384 tokens that the committed slice was cut from, where it exists.
#include <gmock/gmock.h>

#include <filesystem>

#include "runtime/base/environment.h"
#include "tests/launcher/program.h"

namespace tessera::launcher_test {
namespace {

TEST(FullDataTest, EveryStrategyIsExactOnTheWholeFile) {
  const StatusOr<Environment> environment = ReadEnvironment();
  ASSERT_TRUE(environment.ok()) << environment.status();
  const std::string& chosen = environment->data_directory;
  const std::string folder = chosen.empty() ? TESSERA_TEST_SOURCE "/../shared/data" : chosen;
  const std::string file = folder + "/kjv_layer2_qkv.safetensors";
  if (!std::filesystem::exists(file)) {
    GTEST_SKIP() << file << " does not exist; TESSERA_DATA_DIR is " << (chosen.empty() ? "not set" : chosen);
  }
  const Outcome run = RunRanks(4, "attend --input " + file + " --strategy all --verify 32");
  EXPECT_EQ(run.exit_code, 0) << run.out << run.err;
  EXPECT_THAT(run.out, ::testing::Not(::testing::HasSubstr("WRONG")));
}

}  // namespace
}  // namespace tessera::launcher_test
