// What a subcommand is: flags that fill a selection, and an action that runs after all ranks agreed on the flags.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <string>

#include "collectives/communicator.h"
#include "launcher/affinity.h"
#include "launcher/host.h"
#include "runtime/base/environment.h"
#include "runtime/base/status.h"

namespace tessera::launcher {

struct Context {
  Environment environment;
  LaunchPlace place;
  Communicator* world = nullptr;  // null when the command runs on this process alone
  double core_share = 0;          // cores of this rank among the ranks of its node, 0 when it runs alone
  int uniform_local_ranks = 0;    // ranks per node when it is the same on all nodes of the job, 0 otherwise

  // What plans for the first `ranks` ranks may assume, the same on every rank; 0 = unknown, or all on one node.
  int RanksPerNode(int ranks) const {
    return uniform_local_ranks > 0 && uniform_local_ranks < ranks && ranks % uniform_local_ranks == 0
               ? uniform_local_ranks
               : 0;
  }
  // What a flag says, or else the environment; threads also have a default: the cores that this process may use, shared
  // with the other ranks of the node that may use them too, unless the command runs on this process alone.
  int Threads(int flag) const {
    if (flag > 0) return flag;
    if (environment.threads > 0) return environment.threads;
    return world == nullptr ? UsableCores() : ThreadsOfShare(core_share);
  }
  std::string Kernel(const std::string& flag) const { return flag.empty() ? environment.kernel : flag; }
  bool root() const { return world == nullptr || world->rank() == 0; }
};

// True when every check passed. Under a communicator an error must be agreed (see collectives/agreement.h) or the job
// is aborted.
using Action = std::function<StatusOr<bool>(const Context&)>;

struct Selection {
  Action action;
  double deadline_seconds = 0;  // 0 = as the environment says
  bool needs_ranks = false;
};

// One per file. Each adds a subcommand whose callback fills `selection`.
void AddAttendCommand(CLI::App& app, Selection& selection);
void AddBenchCommand(CLI::App& app, Selection& selection);
void AddPlanCommand(CLI::App& app, Selection& selection);
void AddBalanceCommand(CLI::App& app, Selection& selection);
void AddDoctorCommand(CLI::App& app, Selection& selection);
void AddMlaCommand(CLI::App& app, Selection& selection);
void AddScoreCommand(CLI::App& app, Selection& selection);
void AddGenerateCommand(CLI::App& app, Selection& selection);

// Measurements, each a subcommand of `bench`.
void AddScalingBench(CLI::App& bench, Selection& selection);
void AddDecodeBench(CLI::App& bench, Selection& selection);
void AddKernelBench(CLI::App& bench, Selection& selection);

}  // namespace tessera::launcher
