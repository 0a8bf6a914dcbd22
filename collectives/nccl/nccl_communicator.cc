#include "collectives/nccl/nccl_communicator.h"

#include <nccl.h>

#include <algorithm>
#include <numeric>
#include <thread>

#include "collectives/arguments.h"
#include "collectives/nccl/error.h"
#include "collectives/nccl/sum.h"
#include "runtime/device/cuda/check.h"
#include "runtime/device/cuda/graph.h"
#include "runtime/device/cuda/stream.h"

namespace tessera::internal {
namespace {

using Clock = std::chrono::steady_clock;

// Set-up and submission usually end at once, waits for the GPU soon.
class BackOff {
 public:
  void Pause() {
    constexpr int kYields = 200;
    constexpr std::chrono::microseconds kLongestSleep{200};
    if (++polls_ < kYields) {
      std::this_thread::yield();
      return;
    }
    std::this_thread::sleep_for(sleep_);
    sleep_ = std::min(2 * sleep_, kLongestSleep);
  }

 private:
  int polls_ = 0;
  std::chrono::microseconds sleep_{5};
};

std::byte* At(std::byte* base, int64_t offset) {
  return base == nullptr ? nullptr : base + offset;
}
const std::byte* At(const std::byte* base, int64_t offset) {
  return base == nullptr ? nullptr : base + offset;
}

// Whether the blocks are what ncclAllGather moves: of equal length, one after the other.
bool IsRegular(std::span<const int64_t> counts, std::span<const int64_t> displacements) {
  for (size_t r = 0; r < counts.size(); ++r) {
    if (counts[r] != counts[0] || displacements[r] != static_cast<int64_t>(r) * counts[0]) return false;
  }
  return true;
}

}  // namespace

Status AwaitNccl(Communicator& control, ncclComm* comm, std::chrono::milliseconds deadline, std::string_view what) {
  const Clock::time_point end = Clock::now() + deadline;
  BackOff back_off;
  while (true) {
    ncclResult_t state = ncclSuccess;
    TESSERA_RETURN_IF_ERROR(NcclStatus(ncclCommGetAsyncError(comm, &state), "ncclCommGetAsyncError", comm));
    if (state != ncclInProgress) return NcclStatus(state, what, comm);
    TESSERA_RETURN_IF_ERROR(control.Health());
    if (Clock::now() >= end) {
      return absl::DeadlineExceededError(absl::StrCat(std::string(what), ": NCCL has not finished on rank ",
                                                      control.rank(), " within ", deadline.count(), " ms"));
    }
    back_off.Pause();
  }
}

NcclCommunicator::NcclCommunicator(Communicator& control, const CudaDevice& device, ncclComm* comm,
                                   std::chrono::milliseconds deadline)
    : control_(control), device_(device), deadline_(deadline), comm_(comm) {}

NcclCommunicator::~NcclCommunicator() {
  if (comm_ == nullptr) return;
  (void)device_.MakeCurrent();
  const int result = ncclCommFinalize(comm_);
  Status status = NcclStatus(result, "ncclCommFinalize", comm_);
  if (result == ncclInProgress) status = AwaitNccl(control_, comm_, deadline_, "ncclCommFinalize");
  (void)(status.ok() ? ncclCommDestroy(comm_) : ncclCommAbort(comm_));
}

Status NcclCommunicator::Start() {
  TESSERA_RETURN_IF_ERROR(status_);
  const Status current = device_.MakeCurrent();
  return current.ok() ? current : Fail(current);
}

Status NcclCommunicator::Fail(const Status& status) {
  Abort(status);
  return status_;
}

void NcclCommunicator::Abort(const Status& reason) {
  if (status_.ok()) status_ = reason.ok() ? absl::CancelledError("the NCCL communicator was aborted") : reason;
  if (comm_ != nullptr) (void)ncclCommAbort(comm_);
  comm_ = nullptr;
}

Status NcclCommunicator::Check(int result, std::string_view call) {
  const Status status = NcclStatus(result, call, comm_);
  return status.ok() ? status : Fail(status);
}

Status NcclCommunicator::Settle(std::string_view what) {
  const Status status = AwaitNccl(control_, comm_, deadline_, what);
  return status.ok() ? status : Fail(status);
}

Status NcclCommunicator::Poll() {
  TESSERA_RETURN_IF_ERROR(status_);
  ncclResult_t state = ncclSuccess;
  TESSERA_RETURN_IF_ERROR(Check(ncclCommGetAsyncError(comm_, &state), "ncclCommGetAsyncError"));
  TESSERA_RETURN_IF_ERROR(Check(state, "an operation submitted before"));
  const Status fault = DeviceFault();
  return fault.ok() ? fault : Fail(fault);
}

Status NcclCommunicator::Wait(CUstream_st* stream, std::string_view what) {
  TESSERA_RETURN_IF_ERROR(Start());
  const Clock::time_point end = Clock::now() + deadline_;
  BackOff back_off;
  while (true) {
    const StatusOr<bool> done = StreamDone(stream);
    if (!done.ok()) return Fail(done.status());
    TESSERA_RETURN_IF_ERROR(Poll());
    if (*done) return absl::OkStatus();
    if (const Status health = control_.Health(); !health.ok()) {
      return Fail(Status(health.code(), absl::StrCat("waiting for ", std::string(what), ": ", health.message())));
    }
    if (Clock::now() >= end) {
      return Fail(absl::DeadlineExceededError(absl::StrCat("waiting for ", std::string(what), ": the stream of rank ",
                                                           rank(), " in plan step ", control_.progress().step,
                                                           " has not finished within ", deadline_.count(), " ms")));
    }
    back_off.Pause();
  }
}

void NcclCommunicator::Count(std::span<const Block> blocks) {
  for (int peer = 0; peer < size(); ++peer) {
    if (peer == rank()) continue;
    traffic_.bytes_sent += blocks[peer].send_bytes;
    traffic_.bytes_received += blocks[peer].receive_bytes;
    traffic_.messages_sent += blocks[peer].send_bytes > 0;
    traffic_.messages_received += blocks[peer].receive_bytes > 0;
  }
}

Status NcclCommunicator::ExchangeBlocks(std::span<const Block> blocks, CUstream_st* stream, std::string_view what) {
  const Block& own = blocks[rank()];
  if (own.receive != own.send) {
    TESSERA_RETURN_IF_ERROR(CopyAsync(own.receive, own.send, own.receive_bytes, stream));
  }
  TESSERA_RETURN_IF_ERROR(Check(ncclGroupStart(), "ncclGroupStart"));
  // Every rank begins with its neighbours: no rank is everybody's first.
  Status status;
  for (int i = 1; i < size() && status.ok(); ++i) {
    const int to = (rank() + i) % size(), from = (rank() + size() - i) % size();
    if (blocks[from].receive_bytes > 0) {
      status = NcclStatus(ncclRecv(blocks[from].receive, blocks[from].receive_bytes, ncclInt8, from, comm_, stream),
                          "ncclRecv", comm_);
    }
    if (status.ok() && blocks[to].send_bytes > 0) {
      status =
          NcclStatus(ncclSend(blocks[to].send, blocks[to].send_bytes, ncclInt8, to, comm_, stream), "ncclSend", comm_);
    }
  }
  const Status ended = NcclStatus(ncclGroupEnd(), what, comm_);
  if (status.ok()) status = ended;
  return status.ok() ? Settle(what) : Fail(status);
}

Status NcclCommunicator::Exchange(std::span<const SendMessage> sends, std::span<const ReceiveMessage> receives,
                                  CUstream_st* stream) {
  std::vector<const SendMessage*> own_sends;
  for (const SendMessage& message : sends) {
    TESSERA_RETURN_IF_ERROR(CheckPeer(message.peer, size()));
    if (message.bytes < 0) return absl::InvalidArgumentError(absl::StrCat("a message of ", message.bytes, " bytes"));
    if (message.peer == rank()) own_sends.push_back(&message);
  }
  size_t own_receives = 0;
  for (const ReceiveMessage& message : receives) {
    TESSERA_RETURN_IF_ERROR(CheckPeer(message.peer, size()));
    if (message.bytes < 0) return absl::InvalidArgumentError(absl::StrCat("a message of ", message.bytes, " bytes"));
    if (message.peer != rank()) continue;
    if (own_receives == own_sends.size() || own_sends[own_receives]->bytes != message.bytes) {
      return absl::InvalidArgumentError(absl::StrCat("receive ", own_receives, " of this rank (", rank(),
                                                     ") from itself has no send of ", message.bytes, " bytes"));
    }
    ++own_receives;
  }
  if (own_receives != own_sends.size()) {
    return absl::InvalidArgumentError(absl::StrCat("this rank (", rank(), ") sends ", own_sends.size(),
                                                   " messages to itself and receives ", own_receives));
  }
  TESSERA_RETURN_IF_ERROR(Start());
  TESSERA_RETURN_IF_ERROR(Check(ncclGroupStart(), "ncclGroupStart"));
  Status status;
  for (const SendMessage& message : sends) {
    if (message.peer == rank() || !status.ok()) continue;
    traffic_.bytes_sent += message.bytes;
    ++traffic_.messages_sent;
    if (message.bytes == 0) continue;
    status =
        NcclStatus(ncclSend(message.data, message.bytes, ncclInt8, message.peer, comm_, stream), "ncclSend", comm_);
  }
  size_t next = 0;
  for (const ReceiveMessage& message : receives) {
    if (!status.ok()) break;
    if (message.peer == rank()) {
      status = CopyAsync(message.data, own_sends[next++]->data, message.bytes, stream);
      continue;
    }
    traffic_.bytes_received += message.bytes;
    ++traffic_.messages_received;
    if (message.bytes == 0) continue;
    status =
        NcclStatus(ncclRecv(message.data, message.bytes, ncclInt8, message.peer, comm_, stream), "ncclRecv", comm_);
  }
  const Status ended = NcclStatus(ncclGroupEnd(), "an exchange", comm_);
  if (status.ok()) status = ended;
  return status.ok() ? Settle("an exchange") : Fail(status);
}

Status NcclCommunicator::AllGatherV(std::span<const std::byte> send, std::byte* receive,
                                    std::span<const int64_t> counts, std::span<const int64_t> displacements,
                                    CUstream_st* stream) {
  TESSERA_RETURN_IF_ERROR(CheckCounts("counts", counts, size()));
  TESSERA_RETURN_IF_ERROR(CheckCounts("displacements", displacements, size()));
  TESSERA_RETURN_IF_ERROR(CheckLength("send", static_cast<int64_t>(send.size()), counts[rank()]));
  TESSERA_RETURN_IF_ERROR(Start());
  std::vector<Block> blocks(size());
  for (int r = 0; r < size(); ++r) {
    blocks[r] = {send.data(), counts[rank()], At(receive, displacements[r]), counts[r]};
  }
  Count(blocks);
  if (!IsRegular(counts, displacements)) return ExchangeBlocks(blocks, stream, "an all-gather");
  if (counts[0] == 0) return absl::OkStatus();
  TESSERA_RETURN_IF_ERROR(
      Check(ncclAllGather(send.data(), receive, counts[0], ncclInt8, comm_, stream), "ncclAllGather"));
  return Settle("an all-gather");
}

Status NcclCommunicator::AllToAllV(const std::byte* send, std::span<const int64_t> send_counts,
                                   std::span<const int64_t> send_displacements, std::byte* receive,
                                   std::span<const int64_t> receive_counts,
                                   std::span<const int64_t> receive_displacements, CUstream_st* stream) {
  TESSERA_RETURN_IF_ERROR(CheckCounts("send_counts", send_counts, size()));
  TESSERA_RETURN_IF_ERROR(CheckCounts("send_displacements", send_displacements, size()));
  TESSERA_RETURN_IF_ERROR(CheckCounts("receive_counts", receive_counts, size()));
  TESSERA_RETURN_IF_ERROR(CheckCounts("receive_displacements", receive_displacements, size()));
  TESSERA_RETURN_IF_ERROR(CheckLength("the block to itself", send_counts[rank()], receive_counts[rank()]));
  TESSERA_RETURN_IF_ERROR(Start());
  std::vector<Block> blocks(size());
  for (int r = 0; r < size(); ++r) {
    blocks[r] = {At(send, send_displacements[r]), send_counts[r], At(receive, receive_displacements[r]),
                 receive_counts[r]};
  }
  Count(blocks);
  return ExchangeBlocks(blocks, stream, "an all-to-all");
}

StatusOr<float*> NcclCommunicator::Scratch(int64_t elements, CUstream_st* stream) {
  constexpr auto kBytes = static_cast<int64_t>(sizeof(float));
  std::vector<DeviceBuffer>& buffers = scratch_[stream];
  if (buffers.empty() || buffers.back().bytes() < elements * kBytes) {
    TESSERA_ASSIGN_OR_RETURN(const bool capturing, IsCapturing(stream));
    if (capturing) {
      return absl::FailedPreconditionError(absl::StrCat("a sum needs scratch memory for ", elements,
                                                        " elements, which cannot be made while a graph is captured: "
                                                        "run the step once before"));
    }
    // At least doubled, so that what is kept of smaller ones is no more than the last.
    const int64_t bytes = std::max(elements * kBytes, buffers.empty() ? 0 : 2 * buffers.back().bytes());
    TESSERA_ASSIGN_OR_RETURN(DeviceBuffer buffer,
                             DeviceBuffer::Allocate(device_, bytes, "the scratch memory of a sum", stream));
    buffers.push_back(std::move(buffer));
  }
  return reinterpret_cast<float*>(buffers.back().data());
}

// `begins` [size + 1] are the first elements of each rank's part of `send`, and the end.
Status NcclCommunicator::ReduceScatter(std::span<const float> send, float* receive, std::span<const int64_t> begins,
                                       CUstream_st* stream, std::string_view what) {
  constexpr auto kBytes = static_cast<int64_t>(sizeof(float));
  const int64_t own = begins[rank() + 1] - begins[rank()];
  float* peers = nullptr;
  if (own > 0 && size() > 1) {
    TESSERA_ASSIGN_OR_RETURN(peers, Scratch((size() - 1) * own, stream));
  }
  std::vector<Block> blocks(size());
  for (int r = 0; r < size(); ++r) {
    if (r == rank()) continue;
    const int64_t count = begins[r + 1] - begins[r];
    blocks[r] = {reinterpret_cast<const std::byte*>(send.data() + begins[r]), count * kBytes,
                 reinterpret_cast<std::byte*>(peers + (r < rank() ? r : r - 1) * own), own * kBytes};
  }
  Count(blocks);
  TESSERA_RETURN_IF_ERROR(ExchangeBlocks(blocks, stream, what));
  const Status summed = CheckCuda(
      SumInRankOrder(send.data() + begins[rank()], peers, receive, own, size(), rank(), stream), "the kernel of a sum");
  return summed.ok() ? summed : Fail(summed);
}

Status NcclCommunicator::ReduceScatterSum(std::span<const float> send, std::span<float> receive,
                                          std::span<const int64_t> counts, CUstream_st* stream) {
  TESSERA_RETURN_IF_ERROR(CheckCounts("counts", counts, size()));
  std::vector<int64_t> begins(size() + 1);
  std::partial_sum(counts.begin(), counts.end(), begins.begin() + 1);
  TESSERA_RETURN_IF_ERROR(CheckLength("send", static_cast<int64_t>(send.size()), begins.back()));
  TESSERA_RETURN_IF_ERROR(CheckLength("receive", static_cast<int64_t>(receive.size()), counts[rank()]));
  TESSERA_RETURN_IF_ERROR(Start());
  return ReduceScatter(send, receive.data(), begins, stream, "a reduce-scatter");
}

Status NcclCommunicator::AllReduceSum(std::span<const float> send, std::span<float> receive, CUstream_st* stream) {
  const auto elements = static_cast<int64_t>(send.size());
  TESSERA_RETURN_IF_ERROR(CheckLength("receive", static_cast<int64_t>(receive.size()), elements));
  TESSERA_RETURN_IF_ERROR(Start());
  // The first elements % size ranks sum one element more.
  std::vector<int64_t> begins(size() + 1);
  for (int r = 0; r < size(); ++r) begins[r + 1] = begins[r] + elements / size() + (r < elements % size());
  TESSERA_RETURN_IF_ERROR(ReduceScatter(send, receive.data() + begins[rank()], begins, stream, "an all-reduce"));
  std::vector<Block> blocks(size());
  const auto part = [&](int r) { return reinterpret_cast<std::byte*>(receive.data() + begins[r]); };
  const auto bytes = [&](int r) { return (begins[r + 1] - begins[r]) * static_cast<int64_t>(sizeof(float)); };
  for (int r = 0; r < size(); ++r) blocks[r] = {part(rank()), bytes(rank()), part(r), bytes(r)};
  Count(blocks);
  return ExchangeBlocks(blocks, stream, "an all-reduce");
}

Status NcclCommunicator::Broadcast(std::span<std::byte> data, int root, CUstream_st* stream) {
  TESSERA_RETURN_IF_ERROR(CheckPeer(root, size()));
  TESSERA_RETURN_IF_ERROR(Start());
  const auto bytes = static_cast<int64_t>(data.size());
  std::vector<Block> blocks(size());
  for (int r = 0; r < size(); ++r) {
    if (rank() == root) blocks[r] = {data.data(), bytes, nullptr, 0};
    if (r == root && rank() != root) blocks[r] = {nullptr, 0, data.data(), bytes};
  }
  Count(blocks);
  if (bytes == 0) return absl::OkStatus();
  TESSERA_RETURN_IF_ERROR(
      Check(ncclBroadcast(data.data(), data.data(), bytes, ncclInt8, root, comm_, stream), "ncclBroadcast"));
  return Settle("a broadcast");
}

}  // namespace tessera::internal
