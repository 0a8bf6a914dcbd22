// Running one test program on all ranks of a world, whatever the world is made of.
#pragma once

#include <functional>
#include <ostream>
#include <string>

#include "collectives/communicator.h"
#include "collectives/inproc/world.h"

namespace tessera::testing {

using RankProgram = std::function<Status(Communicator&)>;

// Runs a program on every rank of a fresh world; under MPI this process is one of the ranks.
struct World {
  std::string name;  // also the name of the test's parameter
  std::function<Status(const RankProgram&)> run;
  friend std::ostream& operator<<(std::ostream& out, const World& world) { return out << world.name; }
};

inline World InprocWorld(const std::string& variant, int size, const InprocOptions& options = {}) {
  return {variant + std::to_string(size),
          [size, options](const RankProgram& program) { return RunRanks(size, options, program); }};
}

// Waits for an operation that may have failed to start: Finish(comm, comm.Barrier(), "barrier").
inline Status Finish(Communicator& comm, StatusOr<Request> started, std::string_view what) {
  if (!started.ok()) return started.status();
  return Wait(comm, *started, what);
}

}  // namespace tessera::testing
