// Starts jobs under mpirun that lose a rank, and looks at how they end.
#pragma once

#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <string>
#include <thread>

namespace tessera::testing {

struct JobOutcome {
  int exit_code = 0;
  double seconds = 0;
  std::string output;
  bool processes_left = false;
};

inline int Shell(const std::string& command, std::string* output) {
  FILE* pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) return -1;
  char buffer[4096];
  for (size_t n; (n = fread(buffer, 1, sizeof(buffer), pipe)) > 0;) output->append(buffer, n);
  const int status = pclose(pipe);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

// `program` gets `arguments` and a last one, by which its processes are found.
inline JobOutcome RunJob(const std::string& mpiexec, int ranks, const std::string& program,
                         const std::string& arguments) {
  JobOutcome outcome;
  static int jobs = 0;
  const std::string marker = "tessera-failing-job-" + std::to_string(getpid()) + "-" + std::to_string(jobs++);
  const auto begin = std::chrono::steady_clock::now();
  // The time-out is for a runtime that hangs: the test then fails instead of the whole run.
  outcome.exit_code = Shell("timeout -k 2 40 " + mpiexec + " -n " + std::to_string(ranks) + " " + program + " " +
                                arguments + " " + marker + " 2>&1",
                            &outcome.output);
  outcome.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  // mpirun may return a moment before the kernel has removed the last rank. The brackets hide this search from itself.
  const std::string search = "pgrep -f '[t]" + marker.substr(1) + "'";
  for (int i = 0; i < 20; ++i) {
    std::string pids;
    outcome.processes_left = Shell(search, &pids) == 0;
    if (!outcome.processes_left) break;
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
  std::printf("%s: exit code %d after %.2f s\n%s\n", arguments.c_str(), outcome.exit_code, outcome.seconds,
              outcome.output.c_str());
  return outcome;
}

}  // namespace tessera::testing
