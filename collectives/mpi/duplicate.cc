#include "collectives/mpi/duplicate.h"

#include <mpi.h>

#include <thread>

#include "collectives/mpi/error.h"

namespace tessera::internal {

Status PollFor(std::chrono::milliseconds deadline, const std::string& what,
               const std::function<StatusOr<bool>()>& done) {
  const auto end = std::chrono::steady_clock::now() + deadline;
  while (true) {
    TESSERA_ASSIGN_OR_RETURN(const bool finished, done());
    if (finished) return absl::OkStatus();
    if (std::chrono::steady_clock::now() > end) {
      return absl::DeadlineExceededError(absl::StrCat(what, " took longer than ", deadline.count(), " ms"));
    }
    std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
}

StatusOr<int> Duplicate(int parent, std::chrono::milliseconds deadline) {
  MPI_Comm duplicate = MPI_COMM_NULL;
  MPI_Request request = MPI_REQUEST_NULL;
  TESSERA_MPI_RETURN_IF_ERROR(MPI_Comm_idup, MPI_Comm_f2c(parent), &duplicate, &request);
  TESSERA_RETURN_IF_ERROR(PollFor(deadline, "duplicating the communicator", [&]() -> StatusOr<bool> {
    int done = 0;
    TESSERA_MPI_RETURN_IF_ERROR(MPI_Test, &request, &done, MPI_STATUS_IGNORE);
    return done != 0;
  }));
  TESSERA_MPI_RETURN_IF_ERROR(MPI_Comm_set_errhandler, duplicate, MPI_ERRORS_RETURN);
  return MPI_Comm_c2f(duplicate);
}

Status FreeDuplicate(int handle) {
  MPI_Comm duplicate = MPI_Comm_f2c(handle);
  return MpiStatus(MPI_Comm_free(&duplicate), "MPI_Comm_free");
}

}  // namespace tessera::internal
