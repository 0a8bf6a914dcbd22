#include "runtime/base/environment.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

namespace tessera {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;

class EnvironmentTest : public ::testing::Test {
 protected:
  void SetUp() override { Clear(); }
  void TearDown() override { Clear(); }
  static void Clear() {
    for (const EnvironmentVariable& variable : EnvironmentVariables()) unsetenv(std::string(variable.name).c_str());
    for (const char* name : {"TESSERA_DEADLINE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"}) unsetenv(name);
  }
  static void ExpectRefused(const char* name, const char* value) {
    setenv(name, value, 1);
    const StatusOr<Environment> environment = ReadEnvironment();
    ASSERT_FALSE(environment.ok()) << name << "=" << value;
    EXPECT_EQ(environment.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(environment.status().message()),
                HasSubstr(std::string(name) + " is \"" + value + "\"; allowed: "));
    unsetenv(name);
  }
};

TEST_F(EnvironmentTest, DefaultsHoldWhenNothingIsSet) {
  const StatusOr<Environment> environment = ReadEnvironment();
  ASSERT_TRUE(environment.ok()) << environment.status();
  EXPECT_EQ(environment->deadline_seconds, 30);
  EXPECT_EQ(environment->threads, 0);
  EXPECT_EQ(environment->kernel, "");
}

TEST_F(EnvironmentTest, ValuesAreRead) {
  setenv("TESSERA_DEADLINE_SECONDS", "2.5", 1);
  setenv("TESSERA_THREADS", "3", 1);
  setenv("TESSERA_KERNEL", "reference", 1);
  const StatusOr<Environment> environment = ReadEnvironment();
  ASSERT_TRUE(environment.ok()) << environment.status();
  EXPECT_EQ(environment->deadline_seconds, 2.5);
  EXPECT_EQ(environment->threads, 3);
  EXPECT_EQ(environment->kernel, "reference");
}

TEST_F(EnvironmentTest, MalformedValuesAreNamed) {
  for (const char* value : {"", "soon", "-1", "0", "nan", "1e9"}) ExpectRefused("TESSERA_DEADLINE_SECONDS", value);
  for (const char* value : {"", "two", "0", "-4", "1.5", "99999"}) ExpectRefused("TESSERA_THREADS", value);
  ExpectRefused("TESSERA_KERNEL", "");
}

TEST_F(EnvironmentTest, MisspeltNamesAreFound) {
  setenv("TESSERA_DEADLINE", "5", 1);
  EXPECT_THAT(UnknownVariables(), Contains("TESSERA_DEADLINE"));
}

TEST_F(EnvironmentTest, LaunchPlaceComesFromTheLauncher) {
  setenv("OMPI_COMM_WORLD_RANK", "3", 1);
  setenv("OMPI_COMM_WORLD_SIZE", "8", 1);
  EXPECT_EQ(ReadLaunchPlace().rank, 3);
  EXPECT_EQ(ReadLaunchPlace().ranks, 8);
}

}  // namespace
}  // namespace tessera
