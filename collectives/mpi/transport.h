// Messages over a private duplicate of the caller's communicator.
#pragma once

#include <chrono>
#include <memory>

#include "collectives/liveness.h"
#include "collectives/mpi/communicator.h"
#include "collectives/mpi/heartbeat.h"
#include "collectives/transport.h"

namespace tessera::internal {

class MpiTransport final : public Transport {
 public:
  // Collective over `parent`, a Fortran handle.
  static StatusOr<std::shared_ptr<Transport>> Make(int parent, const MpiOptions& options);
  // Collective while the world is healthy: waits for all ranks, then frees the communicators. Otherwise leaves them to
  // the end of the process.
  ~MpiTransport() override;

  std::string_view name() const override { return "mpi"; }
  int rank() const override { return rank_; }
  int size() const override { return size_; }
  int64_t tag_limit() const override { return tag_limit_; }

  StatusOr<std::unique_ptr<RequestImpl>> Send(ConstBytes data, int peer, int64_t tag) override;
  StatusOr<std::unique_ptr<RequestImpl>> Receive(Bytes data, int peer, int64_t tag) override;

  void ReportProgress(RankProgress progress) override { liveness_->Report(progress); }
  RankProgress progress() const override { return liveness_->progress(); }
  Status Health() const override { return liveness_->Health(); }
  std::chrono::milliseconds deadline() const override { return liveness_->deadline(); }

 private:
  MpiTransport() = default;

  int64_t chunk_bytes_ = 0;
  int handle_ = 0;
  int rank_ = 0;
  int size_ = 0;
  int64_t tag_limit_ = 0;
  std::shared_ptr<Liveness> liveness_;
  std::unique_ptr<Heartbeat> heartbeat_;
};

}  // namespace tessera::internal
