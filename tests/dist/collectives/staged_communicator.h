// A StreamCommunicator dressed up as a Communicator, so that the same conformance suite runs over it: host buffers are
// staged through device memory, and everything that a caller waits for is an event of a stream.
//
// Point-to-point messages of a Communicator match by tag and in any order; those of NCCL match in the order of the
// calls alone. So the receiver, who knows which message it wants next, clears its sender to send, and every direction
// of every pair of ranks has a NCCL communicator of its own. Payload never travels over the control communicator,
// except from a rank to itself.
#pragma once

#include <deque>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <vector>

#include "collectives/nccl/communicator.h"
#include "runtime/device/cuda/buffer.h"
#include "runtime/device/cuda/stream.h"

namespace tessera::testing {

class StagedCommunicator final : public Communicator {
 public:
  // Collective over `control`.
  static StatusOr<std::unique_ptr<Communicator>> Make(std::unique_ptr<Communicator> control, const CudaDevice& device);
  ~StagedCommunicator() override;

  std::string_view name() const override { return collectives_->name(); }
  int rank() const override { return control_->rank(); }
  int size() const override { return control_->size(); }

  StatusOr<Request> Send(ConstBytes data, int peer, int tag) override;
  StatusOr<Request> Receive(Bytes data, int peer, int tag) override;
  StatusOr<Request> AllGatherV(ConstBytes send, std::byte* receive, std::span<const int64_t> counts,
                               std::span<const int64_t> displacements) override;
  StatusOr<Request> AllToAllV(const std::byte* send, std::span<const int64_t> send_counts,
                              std::span<const int64_t> send_displacements, std::byte* receive,
                              std::span<const int64_t> receive_counts,
                              std::span<const int64_t> receive_displacements) override;
  StatusOr<Request> ReduceScatterSum(std::span<const float> send, std::span<float> receive,
                                     std::span<const int64_t> counts) override;
  StatusOr<Request> AllReduceSum(std::span<const float> send, std::span<float> receive) override;
  StatusOr<Request> Broadcast(Bytes data, int root) override;
  StatusOr<Request> Barrier() override;  // of the control communicator: NCCL has none
  StatusOr<std::unique_ptr<Communicator>> Split(int color, int key) override;

  void ReportProgress(RankProgress progress) override { control_->ReportProgress(progress); }
  RankProgress progress() const override { return control_->progress(); }
  Status Health() const override { return control_->Health(); }
  std::chrono::milliseconds deadline() const override { return control_->deadline(); }
  Traffic traffic() const override;
  void ResetTraffic() override;

 private:
  friend class ProgressingRequest;
  // Something that Test() drives: true when it is over.
  using Step = std::function<StatusOr<bool>()>;
  struct Message;
  // One direction between this rank and a peer.
  struct Link {
    std::unique_ptr<Communicator> control;
    std::unique_ptr<StreamCommunicator> nccl;
    std::optional<CudaStream> stream;
    int64_t next = 0;  // sends: the clearance to act on next; receives: the next to give
    std::map<int, std::deque<std::shared_ptr<Message>>> uncleared;  // receives by tag, in the order of posting
  };

  explicit StagedCommunicator(std::unique_ptr<Communicator> control, const CudaDevice& device)
      : control_(std::move(control)), device_(device) {}
  Status MakeLinks();
  Request Drive(Step step);
  Status Progress();
  StatusOr<DeviceBuffer> Stage(ConstBytes data, CUstream_st* stream);
  // The rest of a collective: copies `blocks` of device memory out, and a request for the end of all that.
  struct Block {
    std::byte* to;
    const std::byte* from;
    int64_t bytes;
  };
  StatusOr<Request> Finish(std::vector<DeviceBuffer> buffers, std::vector<Block> blocks);
  CUstream_st* stream() const { return stream_->handle(); }

  std::unique_ptr<Communicator> control_, headers_, clearances_;
  CudaDevice device_;
  std::optional<CudaStream> stream_;  // of collectives
  std::unique_ptr<StreamCommunicator> collectives_;
  std::vector<Link> to_, from_;  // by peer
  std::list<std::shared_ptr<Step>> pending_;
  Traffic messages_;
};

}  // namespace tessera::testing
