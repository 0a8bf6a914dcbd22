#include <thread>

#include "collectives/inproc/world.h"
#include "collectives/liveness.h"

namespace tessera {
namespace {

Status Combine(const std::vector<Status>& statuses) {
  for (const bool about_peers : {false, true}) {
    for (size_t r = 0; r < statuses.size(); ++r) {
      if (statuses[r].ok() || IsPeerFailure(statuses[r]) != about_peers) continue;
      return Status(statuses[r].code(), absl::StrCat("rank ", r, ": ", statuses[r].message()));
    }
  }
  return absl::OkStatus();
}

}  // namespace

Status RunRanks(int size, const InprocOptions& options, const std::function<Status(Communicator&)>& program) {
  TESSERA_ASSIGN_OR_RETURN(auto communicators, MakeInprocWorld(size, options));
  std::vector<Status> statuses(size);
  std::vector<std::thread> threads;
  for (int r = 0; r < size; ++r) {
    threads.emplace_back([&program, &status = statuses[r], comm = std::move(communicators[r])]() mutable {
      status = program(*comm);
      if (!status.ok()) comm->ReportProgress({RankState::kFailed, comm->progress().step});
      comm.reset();  // leaves the world, which may release a frozen rank
    });
  }
  for (std::thread& thread : threads) thread.join();
  return Combine(statuses);
}

}  // namespace tessera
