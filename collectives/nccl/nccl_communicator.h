// StreamCommunicator over a NCCL communicator.
#pragma once

#include <chrono>
#include <map>
#include <string>
#include <vector>

#include "collectives/stream_communicator.h"
#include "runtime/device/cuda/buffer.h"
#include "runtime/device/cuda/device.h"

struct ncclComm;

namespace tessera::internal {

class NcclCommunicator final : public StreamCommunicator {
 public:
  // Takes `comm`, a non-blocking communicator that is ready, with the ranks of `control`.
  NcclCommunicator(Communicator& control, const CudaDevice& device, ncclComm* comm, std::chrono::milliseconds deadline);
  // Waits, up to the deadline, for what was submitted. Streams that were given to calls must be idle and still exist.
  ~NcclCommunicator() override;

  std::string_view name() const override { return "nccl"; }
  int rank() const override { return control_.rank(); }
  int size() const override { return control_.size(); }

  Status Exchange(std::span<const SendMessage> sends, std::span<const ReceiveMessage> receives,
                  CUstream_st* stream) override;
  Status AllGatherV(std::span<const std::byte> send, std::byte* receive, std::span<const int64_t> counts,
                    std::span<const int64_t> displacements, CUstream_st* stream) override;
  Status AllToAllV(const std::byte* send, std::span<const int64_t> send_counts,
                   std::span<const int64_t> send_displacements, std::byte* receive,
                   std::span<const int64_t> receive_counts, std::span<const int64_t> receive_displacements,
                   CUstream_st* stream) override;
  Status ReduceScatterSum(std::span<const float> send, std::span<float> receive, std::span<const int64_t> counts,
                          CUstream_st* stream) override;
  Status AllReduceSum(std::span<const float> send, std::span<float> receive, CUstream_st* stream) override;
  Status Broadcast(std::span<std::byte> data, int root, CUstream_st* stream) override;

  Status Poll() override;
  Status Wait(CUstream_st* stream, std::string_view what) override;
  void Abort(const Status& reason) override;
  Traffic traffic() const override { return traffic_; }
  void ResetTraffic() override { traffic_ = {}; }

 private:
  // What this rank exchanges with one peer. Null or empty where there is nothing.
  struct Block {
    const std::byte* send = nullptr;
    int64_t send_bytes = 0;
    std::byte* receive = nullptr;
    int64_t receive_bytes = 0;
  };

  Status Start();  // OK when a call may be made: no error so far, this GPU current
  Status Check(int result, std::string_view call);
  Status Settle(std::string_view what);  // polls until the library has taken what was submitted
  Status ExchangeBlocks(std::span<const Block> blocks, CUstream_st* stream, std::string_view what);
  void Count(std::span<const Block> blocks);
  Status ReduceScatter(std::span<const float> send, float* receive, std::span<const int64_t> begins,
                       CUstream_st* stream, std::string_view what);
  StatusOr<float*> Scratch(int64_t elements, CUstream_st* stream);
  Status Fail(const Status& status);  // aborts; returns the first error

  Communicator& control_;
  const CudaDevice device_;
  const std::chrono::milliseconds deadline_;
  ncclComm* comm_;  // null after an abort
  Status status_;   // the first error
  Traffic traffic_;
  // Summands of the peers. One list per stream, because only a stream's own order keeps two sums apart; smaller
  // buffers are kept when one grows, because graphs may have recorded them.
  std::map<CUstream_st*, std::vector<DeviceBuffer>> scratch_;
};

// Polls ncclCommGetAsyncError until it is no longer in progress: bounded by the deadline and the health of `control`.
Status AwaitNccl(Communicator& control, ncclComm* comm, std::chrono::milliseconds deadline, std::string_view what);

}  // namespace tessera::internal
