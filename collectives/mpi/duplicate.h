// Private duplicates of the caller's communicator, and waiting for MPI requests with a bound. Communicators are passed
// as Fortran handles, which are plain integers, so that this header needs no <mpi.h>.
#pragma once

#include <chrono>
#include <functional>

#include "runtime/base/status.h"

namespace tessera::internal {

// Collective over `parent`. The duplicate returns errors instead of aborting.
StatusOr<int> Duplicate(int parent, std::chrono::milliseconds deadline);
Status FreeDuplicate(int handle);

// Polls `done` until it is true, an error, or `deadline` has passed.
Status PollFor(std::chrono::milliseconds deadline, const std::string& what,
               const std::function<StatusOr<bool>()>& done);

}  // namespace tessera::internal
