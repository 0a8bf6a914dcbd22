#include "collectives/mpi/transport.h"

#include <mpi.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <utility>
#include <vector>

#include "collectives/host_identity.h"
#include "collectives/mpi/duplicate.h"
#include "collectives/mpi/error.h"
#include "collectives/mpi/process.h"

namespace tessera::internal {
namespace {

// One message, as the chunks it takes: MPI 3.1 counts are ints. Chunks share a tag, which MPI matches in order.
class MpiMessage final : public RequestImpl {
 public:
  MpiMessage(std::shared_ptr<Liveness> liveness, int64_t bytes, int64_t chunk_bytes, bool receives)
      : liveness_(std::move(liveness)), bytes_(bytes), chunk_bytes_(chunk_bytes), receives_(receives) {}
  ~MpiMessage() override {
    if (next_ == requests_.size()) return;
    AbandonMpi();
    for (size_t i = next_; i < requests_.size(); ++i) {
      if (receives_) MPI_Cancel(&requests_[i]);  // best effort: the world is broken already
      MPI_Request_free(&requests_[i]);
    }
  }

  // Calls start(offset, count, request) for every chunk; an empty message is one empty chunk.
  template <typename Start>
  Status StartChunks(Start start) {
    int64_t offset = 0;
    do {
      MPI_Request request = MPI_REQUEST_NULL;
      TESSERA_RETURN_IF_ERROR(start(offset, ChunkBytes(offset), &request));
      requests_.push_back(request);
      offset += chunk_bytes_;
    } while (offset < bytes_);
    return absl::OkStatus();
  }

  StatusOr<bool> Test() override {
    for (; error_.ok() && next_ < requests_.size(); ++next_) {
      int done = 0;
      MPI_Status status;
      error_ = MpiStatus(MPI_Test(&requests_[next_], &done, &status), "MPI_Test");
      if (!error_.ok()) break;
      if (!done) return false;
      liveness_->NoteAdvance();
      if (receives_) error_ = CheckArrived(status);
    }
    if (!error_.ok()) return error_;
    return true;
  }

 private:
  int ChunkBytes(int64_t offset) const { return static_cast<int>(std::min(chunk_bytes_, bytes_ - offset)); }
  Status CheckArrived(const MPI_Status& status) const {
    int arrived = 0;
    TESSERA_MPI_RETURN_IF_ERROR(MPI_Get_count, &status, MPI_BYTE, &arrived);
    const int expected = ChunkBytes(static_cast<int64_t>(next_) * chunk_bytes_);
    if (arrived == expected) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("a message of ", arrived, " bytes met a receive of ", expected, " (in chunk ", next_, ")"));
  }

  const std::shared_ptr<Liveness> liveness_;
  const int64_t bytes_;
  const int64_t chunk_bytes_;
  const bool receives_;
  std::vector<MPI_Request> requests_;
  size_t next_ = 0;
  Status error_;
};

}  // namespace

StatusOr<std::shared_ptr<Transport>> MpiTransport::Make(int parent, const MpiOptions& options) {
  const MPI_Comm world = MPI_Comm_f2c(parent);
  std::shared_ptr<MpiTransport> transport(new MpiTransport);
  transport->chunk_bytes_ = options.chunk_bytes;
  TESSERA_MPI_RETURN_IF_ERROR(MPI_Comm_rank, world, &transport->rank_);
  TESSERA_MPI_RETURN_IF_ERROR(MPI_Comm_size, world, &transport->size_);
  const uint64_t host = HostIdentity();
  transport->liveness_ = std::make_shared<Liveness>(LivenessOptions{
      .rank = transport->rank_,
      .size = transport->size_,
      .deadline = options.deadline,
      .finished_ranks_beat = true,
      .host = host,
      .pid = static_cast<int32_t>(getpid()),
      .is_gone = [host](int, const RankRecord& peer) { return peer.host == host && ProcessIsGone(peer.pid); }});
  TESSERA_ASSIGN_OR_RETURN(transport->handle_, Duplicate(parent, options.deadline));
  int* tag_upper_bound = nullptr;
  int found = 0;
  TESSERA_MPI_RETURN_IF_ERROR(MPI_Comm_get_attr, MPI_COMM_WORLD, MPI_TAG_UB, &tag_upper_bound, &found);
  transport->tag_limit_ = found ? int64_t{*tag_upper_bound} + 1 : 32768;  // the least that MPI allows
  const auto interval = std::clamp<std::chrono::milliseconds>(options.deadline / 40, std::chrono::milliseconds(5),
                                                              options.heartbeat_interval);
  TESSERA_ASSIGN_OR_RETURN(transport->heartbeat_, Heartbeat::Start(parent, transport->liveness_, interval));
  RegisterWorld(transport->liveness_);
  return std::shared_ptr<Transport>(std::move(transport));
}

MpiTransport::~MpiTransport() {
  if (heartbeat_ == nullptr) return;
  const RankProgress last = progress();
  if (last.state == RankState::kFailed || MpiIsAbandoned() || !Health().ok()) {
    AbandonMpi();
    return;
  }
  ReportProgress({RankState::kFinished, last.step});
  Status status = heartbeat_->Finish();
  if (status.ok()) status = FreeDuplicate(handle_);
  if (status.ok()) return;
  AbandonMpi();
  std::fprintf(stderr, "tessera: rank %d: leaving the world: %s\n", rank_, std::string(status.message()).c_str());
}

StatusOr<std::unique_ptr<RequestImpl>> MpiTransport::Send(ConstBytes data, int peer, int64_t tag) {
  auto message = std::make_unique<MpiMessage>(liveness_, static_cast<int64_t>(data.size()), chunk_bytes_, false);
  TESSERA_RETURN_IF_ERROR(message->StartChunks([&](int64_t offset, int count, MPI_Request* request) {
    return MpiStatus(
        MPI_Isend(data.data() + offset, count, MPI_BYTE, peer, static_cast<int>(tag), MPI_Comm_f2c(handle_), request),
        "MPI_Isend");
  }));
  return message;
}

StatusOr<std::unique_ptr<RequestImpl>> MpiTransport::Receive(Bytes data, int peer, int64_t tag) {
  auto message = std::make_unique<MpiMessage>(liveness_, static_cast<int64_t>(data.size()), chunk_bytes_, true);
  TESSERA_RETURN_IF_ERROR(message->StartChunks([&](int64_t offset, int count, MPI_Request* request) {
    return MpiStatus(
        MPI_Irecv(data.data() + offset, count, MPI_BYTE, peer, static_cast<int>(tag), MPI_Comm_f2c(handle_), request),
        "MPI_Irecv");
  }));
  return message;
}

}  // namespace tessera::internal
