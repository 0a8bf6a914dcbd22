// Private duplicates of MPI_COMM_WORLD, and waiting for MPI requests with a bound. Communicators are passed as Fortran
// handles, which are plain integers, so that this header needs no <mpi.h>.
#pragma once

#include <chrono>
#include <functional>

#include "runtime/base/status.h"

namespace tessera::internal {

// Collective over MPI_COMM_WORLD. The duplicate returns errors instead of aborting.
StatusOr<int> DuplicateWorld(std::chrono::milliseconds deadline);
Status FreeDuplicate(int handle);

// Polls `done` until it is true, an error, or `deadline` has passed.
Status PollFor(std::chrono::milliseconds deadline, const std::string& what,
               const std::function<StatusOr<bool>()>& done);

}  // namespace tessera::internal
