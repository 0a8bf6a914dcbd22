// Communicators of the C interface.
#include <limits>
#include <utility>
#include <vector>

#include "collectives/callback/communicator.h"
#include "collectives/inproc/world.h"
#include "runtime/capi/boundary.h"
#include "runtime/capi/handles.h"
#ifdef TESSERA_HAVE_MPI
#include "collectives/mpi/communicator.h"
#endif

namespace tessera::capi {
namespace {

constexpr int kMaxInprocRanks = 1024;  // each is a thread of the caller

StatusOr<std::chrono::milliseconds> ToDeadline(int64_t deadline_ms) {
  constexpr int64_t kLongest = int64_t{1000} * 3600 * 24 * 365;
  if (deadline_ms == 0) return std::chrono::milliseconds(30000);
  if (deadline_ms < 0 || deadline_ms > kLongest) {
    return absl::InvalidArgumentError(
        absl::StrCat("deadline_ms is ", deadline_ms, "; it must be from 1 to ", kLongest, ", or 0 for 30000"));
  }
  return std::chrono::milliseconds(deadline_ms);
}

tessera_comm* Wrap(std::unique_ptr<Communicator> comm) {
  return new tessera_comm{std::move(comm)};
}

Status CreateInproc(int size, int64_t deadline_ms, tessera_comm** comms) {
  TESSERA_RETURN_IF_ERROR(CheckNotNull("comms", comms));
  if (size < 1 || size > kMaxInprocRanks) {
    return absl::InvalidArgumentError(absl::StrCat("size is ", size, "; it must be from 1 to ", kMaxInprocRanks));
  }
  InprocOptions options;
  TESSERA_ASSIGN_OR_RETURN(options.deadline, ToDeadline(deadline_ms));
  TESSERA_ASSIGN_OR_RETURN(auto world, MakeInprocWorld(size, options));
  std::vector<std::unique_ptr<tessera_comm>> handles;
  for (auto& comm : world) handles.emplace_back(Wrap(std::move(comm)));
  for (int r = 0; r < size; ++r) comms[r] = handles[r].release();
  return absl::OkStatus();
}

}  // namespace
}  // namespace tessera::capi

using namespace tessera;
using namespace tessera::capi;

tessera_result tessera_comm_create_self(tessera_comm** comm) {
  return Guard([&]() -> Status {
    TESSERA_RETURN_IF_ERROR(CheckNotNull("comm", comm));
    return CreateInproc(1, 0, comm);
  });
}

tessera_result tessera_comm_create_inproc(int size, int64_t deadline_ms, tessera_comm** comms) {
  return Guard([&] { return CreateInproc(size, deadline_ms, comms); });
}

tessera_result tessera_comm_create_mpi(const void* mpi_comm, int64_t deadline_ms, tessera_comm** comm) {
  return Guard([&]() -> Status {
    TESSERA_RETURN_IF_ERROR(CheckNotNull("mpi_comm", mpi_comm));
    TESSERA_RETURN_IF_ERROR(CheckNotNull("comm", comm));
    TESSERA_ASSIGN_OR_RETURN(const auto deadline, ToDeadline(deadline_ms));
#ifdef TESSERA_HAVE_MPI
    MpiOptions options;
    options.deadline = deadline;
    TESSERA_ASSIGN_OR_RETURN(auto world, MakeMpiCommunicator(mpi_comm, options));
    *comm = Wrap(std::move(world));
    return absl::OkStatus();
#else
    static_cast<void>(deadline);
    return absl::UnimplementedError("mpi_comm: this library was built without MPI (TESSERA_MPI=OFF)");
#endif
  });
}

tessera_result tessera_comm_create_callbacks(const tessera_callbacks* callbacks, tessera_comm** comm) {
  return Guard([&]() -> Status {
    TESSERA_RETURN_IF_ERROR(CheckStruct("callbacks", callbacks));
    TESSERA_RETURN_IF_ERROR(CheckNotNull("comm", comm));
    CallbackFunctions functions;
    functions.isend = callbacks->isend;
    functions.irecv = callbacks->irecv;
    functions.test = callbacks->test;
    functions.cancel = callbacks->cancel;
    functions.alive = callbacks->alive;
    functions.abort = callbacks->abort;
    functions.context = callbacks->context;
    CallbackOptions options;
    options.rank = callbacks->rank;
    options.size = callbacks->size;
    if (callbacks->tag_limit != 0) options.tag_limit = callbacks->tag_limit;
    TESSERA_ASSIGN_OR_RETURN(options.deadline, ToDeadline(callbacks->deadline_ms));
    TESSERA_ASSIGN_OR_RETURN(auto world, MakeCallbackWorld(functions, options));
    *comm = Wrap(std::move(world));
    return absl::OkStatus();
  });
}

tessera_result tessera_comm_rank(const tessera_comm* comm, int* rank) {
  return Guard([&]() -> Status {
    TESSERA_RETURN_IF_ERROR(CheckNotNull("comm", comm));
    TESSERA_RETURN_IF_ERROR(CheckNotNull("rank", rank));
    *rank = comm->comm->rank();
    return absl::OkStatus();
  });
}

tessera_result tessera_comm_size(const tessera_comm* comm, int* size) {
  return Guard([&]() -> Status {
    TESSERA_RETURN_IF_ERROR(CheckNotNull("comm", comm));
    TESSERA_RETURN_IF_ERROR(CheckNotNull("size", size));
    *size = comm->comm->size();
    return absl::OkStatus();
  });
}

tessera_result tessera_comm_abort(tessera_comm* comm) {
  return Guard([&]() -> Status {
    TESSERA_RETURN_IF_ERROR(CheckNotNull("comm", comm));
    comm->comm->ReportProgress({RankState::kFailed, comm->comm->progress().step});
    return absl::OkStatus();
  });
}

void tessera_comm_destroy(tessera_comm* comm) {
  Guard([&] {
    delete comm;
    return absl::OkStatus();
  });
}
