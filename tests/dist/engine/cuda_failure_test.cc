// A rank that dies, stops or does not come while GPUs exchange messages: the others find out in time, say who and in
// which step, and leave no process.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "tests/support/failing_jobs.h"

namespace {

using testing::ContainsRegex;
using testing::HasSubstr;
using Outcome = tessera::testing::JobOutcome;

std::string mpiexec;
std::string program;

constexpr int kVictim = 1;
// A rank is given up after half the deadline, a standstill after all of it; the rest is for starting and ending the
// job, on a busy machine too.
constexpr int kDeadlineMs = 4000;
constexpr double kMostSeconds = 8 + kDeadlineMs / 1000.0;

class CudaFailure : public testing::TestWithParam<const char*> {
 protected:
  Outcome Run(const std::string& fault) const {
    return tessera::testing::RunJob(
        mpiexec, 3, program,
        std::string(GetParam()) + " " + fault + " " + std::to_string(kVictim) + " " + std::to_string(kDeadlineMs));
  }
  // Ends with an error, in time, without a process left behind.
  static void ExpectEnded(const Outcome& outcome) {
    EXPECT_NE(outcome.exit_code, 0);
    EXPECT_NE(outcome.exit_code, 4);
    EXPECT_LT(outcome.seconds, kMostSeconds);
    EXPECT_FALSE(outcome.processes_left);
    EXPECT_THAT(outcome.output, Not(HasSubstr("does not stick")));
  }
};

TEST_P(CudaFailure, HealthyJobEndsCleanly) {
  const Outcome outcome = Run("none");
  EXPECT_EQ(outcome.exit_code, 0);
  EXPECT_EQ(outcome.output, "");
  EXPECT_FALSE(outcome.processes_left);
}

TEST_P(CudaFailure, ARankThatDoesNotComeIsNamedAfterTheDeadline) {
  const Outcome outcome = Run("absent");
  ExpectEnded(outcome);
  EXPECT_THAT(outcome.output, ContainsRegex("rank [02], plan step [0-9]+ \\([a-z]+\\): no rank has made progress for "
                                            "4\\.[0-9] s; rank 1 "));
}

TEST_P(CudaFailure, AStoppedRankIsNamed) {
  const Outcome outcome = Run("stop");
  ExpectEnded(outcome);
  EXPECT_THAT(outcome.output,
              ContainsRegex("rank [02], plan step [0-9]+ \\([a-z]+\\): rank 1 has not been heard from for 2\\."));
}

TEST_P(CudaFailure, AKilledRankIsNamed) {
  const Outcome outcome = Run("kill");
  ExpectEnded(outcome);
  EXPECT_THAT(outcome.output, ContainsRegex("rank 1 \\(pid [0-9]+\\) is gone"));
  EXPECT_THAT(outcome.output, Not(ContainsRegex("rank [02] \\(pid [0-9]+\\) is gone")));
}

// As a kernel that never ends, but that these do.
TEST_P(CudaFailure, AStepOfComputationThatTakesTooLongIsNamed) {
  if (std::getenv("VGPU_DEVICES") == nullptr) GTEST_SKIP() << "needs GPUs this slow, virtual ones";
  if (GetParam() != std::string("attention")) GTEST_SKIP() << "both operators wait by the same code";
  const Outcome outcome = Run("long");
  ExpectEnded(outcome);
  EXPECT_THAT(outcome.output,
              ContainsRegex("rank [0-2], plan step [0-9]+ \\([a-z]+\\): the GPU has computed for [0-9]\\.[0-9] s "
                            "without ending this step"));
}

INSTANTIATE_TEST_SUITE_P(Operators, CudaFailure, testing::Values("attention", "decode"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  if (argc != 3) {
    std::fprintf(stderr, "usage: %s <mpiexec> <cuda_failing_job>\n", argv[0]);
    return EXIT_FAILURE;
  }
  mpiexec = argv[1];
  program = argv[2];
  return RUN_ALL_TESTS();
}
