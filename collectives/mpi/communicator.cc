#include "collectives/mpi/communicator.h"

#include <mpi.h>

#include <limits>

#include "collectives/group_communicator.h"
#include "collectives/mpi/error.h"
#include "collectives/mpi/transport.h"

namespace tessera {

StatusOr<std::unique_ptr<Communicator>> MakeMpiWorld(const MpiOptions& options) {
  const MPI_Comm world = MPI_COMM_WORLD;
  return MakeMpiCommunicator(&world, options);
}

StatusOr<std::unique_ptr<Communicator>> MakeMpiCommunicator(const void* mpi_comm, const MpiOptions& options) {
  if (options.deadline.count() <= 0 || options.heartbeat_interval.count() <= 0) {
    return absl::InvalidArgumentError("the deadline and the heartbeat interval must be positive");
  }
  if (options.chunk_bytes < 1 || options.chunk_bytes > std::numeric_limits<int>::max()) {
    return absl::InvalidArgumentError(absl::StrCat("chunk_bytes is ", options.chunk_bytes, ", not in [1, 2^31)"));
  }
  int initialized = 0;
  int finalized = 0;
  TESSERA_MPI_RETURN_IF_ERROR(MPI_Initialized, &initialized);
  TESSERA_MPI_RETURN_IF_ERROR(MPI_Finalized, &finalized);
  if (!initialized || finalized) return absl::FailedPreconditionError("MPI is not initialised");
  int threads = MPI_THREAD_SINGLE;
  TESSERA_MPI_RETURN_IF_ERROR(MPI_Query_thread, &threads);
  if (threads < MPI_THREAD_MULTIPLE) {
    return absl::FailedPreconditionError("MPI was not initialised with MPI_THREAD_MULTIPLE");
  }
  if (mpi_comm == nullptr) return absl::InvalidArgumentError("mpi_comm is null; it must point to an MPI_Comm");
  const MPI_Comm comm = *static_cast<const MPI_Comm*>(mpi_comm);
  if (comm == MPI_COMM_NULL) return absl::InvalidArgumentError("mpi_comm is MPI_COMM_NULL");
  int between_groups = 0;
  TESSERA_MPI_RETURN_IF_ERROR(MPI_Comm_test_inter, comm, &between_groups);
  if (between_groups)
    return absl::InvalidArgumentError("mpi_comm is an intercommunicator; its ranks must be one group");
  TESSERA_ASSIGN_OR_RETURN(auto transport, internal::MpiTransport::Make(MPI_Comm_c2f(comm), options));
  return internal::GroupCommunicator::MakeWorld(std::move(transport));
}

}  // namespace tessera
