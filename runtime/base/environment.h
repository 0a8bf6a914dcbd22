// The only code that reads environment variables. Everything Tessera listens to is in one documented list.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/status.h"

namespace tessera {

struct EnvironmentVariable {
  std::string_view name;
  std::string_view default_text;
  std::string_view meaning;
};
std::span<const EnvironmentVariable> EnvironmentVariables();

// Values of the variables above; command-line flags override them.
struct Environment {
  double deadline_seconds = 30;  // TESSERA_DEADLINE_SECONDS
  int threads = 0;               // TESSERA_THREADS; 0 = cores divided by the ranks of this node
  std::string kernel;            // TESSERA_KERNEL; empty = the fastest that serves the problem
  std::string data_directory;    // TESSERA_DATA_DIR; empty = unset
};
// InvalidArgument names the variable, its value and what is allowed.
StatusOr<Environment> ReadEnvironment();

// The value of one listed variable as set, nullopt when it is not set.
std::optional<std::string> RawValue(const EnvironmentVariable& variable);
// Names beginning with TESSERA_ that are set but not listed: probably misspelt.
std::vector<std::string> UnknownVariables();

// What the process launcher (Open MPI's mpirun, a PMI launcher or srun) says before MPI is initialised.
struct LaunchPlace {
  int rank = 0;
  int ranks = 1;
  int local_ranks = 1;  // on this node
};
LaunchPlace ReadLaunchPlace();

}  // namespace tessera
