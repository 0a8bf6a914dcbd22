// Jobs that lose a rank end in time, with an error that names the rank and its step, and leave no process.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>

namespace {

using namespace std::chrono_literals;

std::string mpiexec;
std::string program;

struct Outcome {
  int exit_code = 0;
  double seconds = 0;
  std::string output;
  bool processes_left = false;
};

int Shell(const std::string& command, std::string* output) {
  FILE* pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) return -1;
  char buffer[4096];
  for (size_t n; (n = fread(buffer, 1, sizeof(buffer), pipe)) > 0;) output->append(buffer, n);
  const int status = pclose(pipe);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

Outcome RunJob(const std::string& fault, int ranks, int victim, int deadline_ms) {
  Outcome outcome;
  const std::string marker = "tessera-failing-job-" + std::to_string(getpid()) + "-" + fault;
  const auto begin = std::chrono::steady_clock::now();
  // The time-out is for a runtime that hangs: the test then fails instead of the whole run.
  outcome.exit_code =
      Shell("timeout -k 2 40 " + mpiexec + " -n " + std::to_string(ranks) + " " + program + " " + fault + " " +
                std::to_string(victim) + " " + std::to_string(deadline_ms) + " " + marker + " 2>&1",
            &outcome.output);
  outcome.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  // mpirun may return a moment before the kernel has removed the last rank. The brackets hide this search from itself.
  const std::string search = "pgrep -f '[t]" + marker.substr(1) + "'";
  for (int i = 0; i < 20; ++i) {
    std::string pids;
    outcome.processes_left = Shell(search, &pids) == 0;
    if (!outcome.processes_left) break;
    std::this_thread::sleep_for(100ms);
  }
  std::printf("%s: exit code %d after %.2f s\n%s\n", fault.c_str(), outcome.exit_code, outcome.seconds,
              outcome.output.c_str());
  return outcome;
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
