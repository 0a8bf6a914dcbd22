// Jobs that lose a rank end in time, with an error that names the rank and its step, and leave no process.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "tests/support/failing_jobs.h"

namespace {

std::string mpiexec;
std::string program;

using Outcome = tessera::testing::JobOutcome;

Outcome RunJob(const std::string& fault, int ranks, int victim, int deadline_ms) {
  return tessera::testing::RunJob(mpiexec, ranks, program,
                                  fault + " " + std::to_string(victim) + " " + std::to_string(deadline_ms));
}

// A rank is given up after half the deadline; the other half is for ending the job, on a busy machine too. The job
// pauses for up to 1.5 s before the fault.
constexpr int kDeadlineMs = 8000;
constexpr double kMostSeconds = 1.5 + kDeadlineMs / 1000.0;

TEST(MpiFailure, HealthyJobEndsCleanly) {
  const Outcome outcome = RunJob("none", 4, 2, kDeadlineMs);
  EXPECT_EQ(outcome.exit_code, 0);
  EXPECT_EQ(outcome.output, "");
  EXPECT_FALSE(outcome.processes_left);
}

TEST(MpiFailure, StoppedRankIsNamedAndTheJobEnds) {
  const Outcome outcome = RunJob("stop", 4, 2, kDeadlineMs);
  EXPECT_NE(outcome.exit_code, 0);
  EXPECT_LT(outcome.seconds, kMostSeconds);
  EXPECT_NE(outcome.output.find("rank 2 has not been heard from for 4."), std::string::npos);
  EXPECT_EQ(outcome.output.find("rank 0 has not been heard from"), std::string::npos);  // rank 2, when it is continued
  EXPECT_NE(outcome.output.find("last seen in plan step 17 (computing)"), std::string::npos);
  EXPECT_FALSE(outcome.processes_left);
}

TEST(MpiFailure, KilledRankIsNamedAndTheJobEnds) {
  const Outcome outcome = RunJob("kill", 4, 2, kDeadlineMs);
  EXPECT_NE(outcome.exit_code, 0);
  EXPECT_LT(outcome.seconds, kMostSeconds);
  EXPECT_NE(outcome.output.find("rank 2 (pid "), std::string::npos);
  EXPECT_NE(outcome.output.find("last seen in plan step 17 (computing)"), std::string::npos);
  EXPECT_FALSE(outcome.processes_left);
}

TEST(MpiFailure, KilledRankIsNamedByRanksThatCompute) {
  const Outcome outcome = RunJob("kill-busy", 8, 5, kDeadlineMs);
  EXPECT_NE(outcome.exit_code, 0);
  EXPECT_LT(outcome.seconds, kMostSeconds);
  EXPECT_NE(outcome.output.find("rank 5 (pid "), std::string::npos);
  EXPECT_NE(outcome.output.find("is gone; it was last seen in plan step 17 (computing); stopping"), std::string::npos);
  for (const char* survivor : {"rank 0 (pid", "rank 1 (pid", "rank 7 (pid"}) {
    EXPECT_EQ(outcome.output.find(survivor), std::string::npos) << survivor;
  }
  EXPECT_FALSE(outcome.processes_left);
}

TEST(MpiFailure, FailedRankEndsTheJob) {
  const Outcome outcome = RunJob("error", 3, 0, kDeadlineMs);
  EXPECT_EQ(outcome.exit_code, 3);
  EXPECT_LT(outcome.seconds, kMostSeconds);
  EXPECT_NE(outcome.output.find("tessera: rank 0: no memory"), std::string::npos);
  for (const char* innocent : {"rank 1 has", "rank 2 has"}) {
    EXPECT_EQ(outcome.output.find(innocent), std::string::npos) << innocent;
  }
  EXPECT_FALSE(outcome.processes_left);
}

}  // namespace

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  if (argc != 3) {
    std::fprintf(stderr, "usage: %s <mpiexec> <failing_job>\n", argv[0]);
    return EXIT_FAILURE;
  }
  mpiexec = argv[1];
  program = argv[2];
  return RUN_ALL_TESTS();
}
