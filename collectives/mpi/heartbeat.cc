#include "collectives/mpi/heartbeat.h"

#include <mpi.h>

#include <condition_variable>
#include <map>
#include <mutex>
#include <thread>
#include <utility>

#include "collectives/mpi/duplicate.h"
#include "collectives/mpi/error.h"

namespace tessera::internal {
namespace {

constexpr int kHeartbeatTag = 0;

// MPI writes to and reads from these until the request is done.
struct Outgoing {
  std::vector<RankRecord> table;
  MPI_Request request = MPI_REQUEST_NULL;
};

}  // namespace

struct Heartbeat::Impl {
  std::shared_ptr<Liveness> liveness;
  std::chrono::milliseconds interval;
  int handle = 0;
  MPI_Comm comm = MPI_COMM_NULL;
  int size = 0;

  std::map<int, Outgoing> outgoing;  // by peer, one in flight at most: a stopped peer holds up only its own
  std::vector<RankRecord> incoming;
  MPI_Request receive = MPI_REQUEST_NULL;
  std::vector<int64_t> sent;  // tables, by peer
  int64_t received = 0;

  std::mutex mutex;
  std::condition_variable changed;
  bool stop = false;
  std::thread thread;

  int table_bytes() const { return static_cast<int>(size * sizeof(RankRecord)); }

  Status PostReceive() {
    return MpiStatus(MPI_Irecv(incoming.data(), table_bytes(), MPI_BYTE, MPI_ANY_SOURCE, kHeartbeatTag, comm, &receive),
                     "MPI_Irecv");
  }
  Status DrainReceives() {
    while (true) {
      int done = 0;
      TESSERA_MPI_RETURN_IF_ERROR(MPI_Test, &receive, &done, MPI_STATUS_IGNORE);
      if (!done) return absl::OkStatus();
      ++received;
      liveness->Merge(incoming);
      TESSERA_RETURN_IF_ERROR(PostReceive());
    }
  }
  Status Gossip(std::vector<RankRecord> table) {
    const int peer = liveness->NextGossipPeer();
    if (peer < 0) return absl::OkStatus();
    Outgoing& slot = outgoing[peer];
    int done = 0;
    TESSERA_MPI_RETURN_IF_ERROR(MPI_Test, &slot.request, &done, MPI_STATUS_IGNORE);
    if (!done) return absl::OkStatus();
    slot.table = std::move(table);
    ++sent[peer];
    return MpiStatus(MPI_Isend(slot.table.data(), table_bytes(), MPI_BYTE, peer, kHeartbeatTag, comm, &slot.request),
                     "MPI_Isend");
  }
  void Run() {
    std::unique_lock lock(mutex);
    while (!stop) {
      lock.unlock();
      Status status = DrainReceives();
      if (status.ok()) status = Gossip(liveness->Beat());
      if (!status.ok()) {
        liveness->Fail(std::move(status));
        return;
      }
      lock.lock();
      changed.wait_for(lock, interval, [this] { return stop; });
    }
  }
  void Stop() {
    {
      const std::lock_guard lock(mutex);
      stop = true;
    }
    changed.notify_all();
    if (thread.joinable()) thread.join();
  }
  Status Await(MPI_Request& request, const char* what) {
    return PollFor(liveness->deadline(), what, [&]() -> StatusOr<bool> {
      int done = 0;
      TESSERA_MPI_RETURN_IF_ERROR(MPI_Test, &request, &done, MPI_STATUS_IGNORE);
      return done != 0;
    });
  }
};

Heartbeat::Heartbeat(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

StatusOr<std::unique_ptr<Heartbeat>> Heartbeat::Start(int parent, std::shared_ptr<Liveness> liveness,
                                                      std::chrono::milliseconds interval) {
  auto impl = std::make_unique<Impl>();
  TESSERA_ASSIGN_OR_RETURN(impl->handle, Duplicate(parent, liveness->deadline()));
  impl->comm = MPI_Comm_f2c(impl->handle);
  TESSERA_MPI_RETURN_IF_ERROR(MPI_Comm_size, impl->comm, &impl->size);
  impl->liveness = std::move(liveness);
  impl->interval = interval;
  impl->incoming.resize(impl->size);
  impl->sent.resize(impl->size);
  TESSERA_RETURN_IF_ERROR(impl->PostReceive());
  impl->thread = std::thread([raw = impl.get()] { raw->Run(); });
  return std::unique_ptr<Heartbeat>(new Heartbeat(std::move(impl)));
}

Heartbeat::~Heartbeat() {
  impl_->Stop();
  // With messages pending, MPI may still touch the tables; the process is about to end, so they stay.
  if (impl_->comm != MPI_COMM_NULL) static_cast<void>(impl_.release());
}

Status Heartbeat::Finish() {
  MPI_Request all_here = MPI_REQUEST_NULL;
  TESSERA_MPI_RETURN_IF_ERROR(MPI_Ibarrier, impl_->comm, &all_here);
  // No bound but the peers' health: this rank may finish long before one that still computes.
  TESSERA_RETURN_IF_ERROR(PollFor(std::chrono::hours(24 * 365), "leaving", [&]() -> StatusOr<bool> {
    int done = 0;
    TESSERA_MPI_RETURN_IF_ERROR(MPI_Test, &all_here, &done, MPI_STATUS_IGNORE);
    if (!done) TESSERA_RETURN_IF_ERROR(impl_->liveness->Health());
    return done != 0;
  }));
  impl_->Stop();

  // Messages still on their way must be received before their communicator is freed, so every rank learns how many
  // were sent to it.
  std::vector<int64_t> expected(impl_->size);
  MPI_Request counts = MPI_REQUEST_NULL;
  TESSERA_MPI_RETURN_IF_ERROR(MPI_Ialltoall, impl_->sent.data(), 1, MPI_INT64_T, expected.data(), 1, MPI_INT64_T,
                              impl_->comm, &counts);
  TESSERA_RETURN_IF_ERROR(impl_->Await(counts, "counting the last heartbeats"));
  int64_t total = 0;
  for (const int64_t count : expected) total += count;
  TESSERA_RETURN_IF_ERROR(
      PollFor(impl_->liveness->deadline(), "receiving the last heartbeats", [&]() -> StatusOr<bool> {
        TESSERA_RETURN_IF_ERROR(impl_->DrainReceives());
        return impl_->received == total;
      }));
  for (auto& [peer, slot] : impl_->outgoing) TESSERA_RETURN_IF_ERROR(impl_->Await(slot.request, "the last heartbeat"));
  TESSERA_MPI_RETURN_IF_ERROR(MPI_Cancel, &impl_->receive);
  TESSERA_RETURN_IF_ERROR(impl_->Await(impl_->receive, "taking back a receive"));
  TESSERA_RETURN_IF_ERROR(FreeDuplicate(impl_->handle));
  impl_->comm = MPI_COMM_NULL;
  return absl::OkStatus();
}

}  // namespace tessera::internal
