// Moving device memory between ranks in the order of a CUDA stream: the calls of Communicator, each with the stream in
// whose order it happens. A call returns as soon as it is submitted; buffers belong to it until the stream has passed
// it. No header of CUDA or NCCL is needed to use one.
//
// All pointers are device memory of this rank's GPU, or null where nothing is moved. Device memory never travels by
// other means, and never through MPI.
//
// Order. Every rank of the communicator makes the same sequence of calls; operations run in that sequence even when
// they are submitted to different streams, and a stream stands still until all ranks that an operation involves are
// there. Ranks that make calls in different orders wait for each other for ever, which Wait() ends by the deadline. One
// thread at a time uses a communicator.
//
// Errors of an operation come later, from Poll() or Wait(). The first one stays: every later call returns it.
//
// CUDA graphs: calls may be captured. Sums need scratch memory that grows on first use, so run a step once before
// capturing it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "collectives/communicator.h"
#include "runtime/base/status.h"

struct CUstream_st;

namespace tessera {

struct SendMessage {
  int peer = 0;
  const std::byte* data = nullptr;  // [bytes] device memory; null only for 0 bytes
  int64_t bytes = 0;
};
struct ReceiveMessage {
  int peer = 0;
  std::byte* data = nullptr;  // [bytes] device memory; null only for 0 bytes
  int64_t bytes = 0;
};

class StreamCommunicator {
 public:
  virtual ~StreamCommunicator() = default;

  virtual std::string_view name() const = 0;  // "nccl"
  virtual int rank() const = 0;
  virtual int size() const = 0;

  // One round: all messages at once, so no order among them can deadlock. A rank that names a peer must be named by it
  // in its own call at the same place of the sequence; ranks without messages may leave the call out. Messages between
  // one pair of ranks match in list order and must agree in length. A message to oneself is a device copy.
  virtual Status Exchange(std::span<const SendMessage> sends, std::span<const ReceiveMessage> receives,
                          CUstream_st* stream) = 0;

  // As in Communicator: counts and displacements in bytes, one entry per rank; `send` may be this rank's own block of
  // `receive`.
  virtual Status AllGatherV(std::span<const std::byte> send, std::byte* receive, std::span<const int64_t> counts,
                            std::span<const int64_t> displacements, CUstream_st* stream) = 0;
  virtual Status AllToAllV(const std::byte* send, std::span<const int64_t> send_counts,
                           std::span<const int64_t> send_displacements, std::byte* receive,
                           std::span<const int64_t> receive_counts, std::span<const int64_t> receive_displacements,
                           CUstream_st* stream) = 0;
  // Sums of fp32 vectors. The order of summation is fixed by rank, so results repeat bitwise and equal those of the
  // other communicators. `receive` may be the start of `send`'s own block, or `send` itself for AllReduceSum.
  virtual Status ReduceScatterSum(std::span<const float> send, std::span<float> receive,
                                  std::span<const int64_t> counts, CUstream_st* stream) = 0;
  virtual Status AllReduceSum(std::span<const float> send, std::span<float> receive, CUstream_st* stream) = 0;
  virtual Status Broadcast(std::span<std::byte> data, int root, CUstream_st* stream) = 0;

  // The first asynchronous error, if any. Cheap; never blocks.
  virtual Status Poll() = 0;
  // Polls until the stream has run everything submitted to it. An error of an operation or of the device, a peer's end
  // (the control communicator's Health), or the deadline without an end aborts the communicator and is returned, naming
  // `what`. The host's only wait; the hot path has none.
  virtual Status Wait(CUstream_st* stream, std::string_view what) = 0;
  // Ends outstanding operations on this rank, whose results are then undefined. Later calls return `reason`, or the
  // error that came before it. Make a new communicator over the same control communicator to go on.
  virtual void Abort(const Status& reason) = 0;

  // Payload, counted as Communicator does, when an operation is submitted. Replays of a graph are not counted.
  virtual Traffic traffic() const = 0;
  virtual void ResetTraffic() = 0;
};

}  // namespace tessera
