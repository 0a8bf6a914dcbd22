// The MPI communicator: processes as ranks, on one host or many.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>

#include "collectives/communicator.h"

namespace tessera {

struct MpiOptions {
  std::chrono::milliseconds deadline{30000};
  // The time between heartbeats; shortened to a fortieth of a short deadline.
  std::chrono::milliseconds heartbeat_interval{100};
  // Longer messages travel in pieces of this length; at most 2^31 - 1. Equal on all ranks.
  int64_t chunk_bytes = int64_t{1} << 30;
};

// The communicator of all ranks of an MPI communicator, on duplicates of it. Collective. MPI must be initialised with
// MPI_THREAD_MULTIPLE, by MpiSession or by the application, because the heartbeat has a thread of its own.
//
// Destroying it and all communicators made from it by Split is collective too, and must precede MPI_Finalize: a rank
// that finishes early waits, beating, for the others. Once the world is unhealthy, or this rank reported kFailed,
// nothing is freed and nobody is waited for; the process must then end without MPI_Finalize, which MpiSession sees to.
StatusOr<std::unique_ptr<Communicator>> MakeMpiWorld(const MpiOptions& options = {});  // of MPI_COMM_WORLD
// `mpi_comm` points to the caller's MPI_Comm, which is only read and may be freed later. InvalidArgument when it is
// null, MPI_COMM_NULL or an intercommunicator. Errors of MPI inside the call go to that communicator's error handler.
StatusOr<std::unique_ptr<Communicator>> MakeMpiCommunicator(const void* mpi_comm, const MpiOptions& options = {});

}  // namespace tessera
