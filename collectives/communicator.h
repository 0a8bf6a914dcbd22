// One interface for moving bytes and sums between ranks. Implementations: inproc (threads as ranks), dryrun (counts,
// moves nothing) and mpi. Communicators never call kernels.
//
// Every operation is nonblocking and returns a Request. Buffers belong to the caller and must stay untouched until the
// request is done. Operations on one communicator may be issued from one thread at a time; different communicators may
// be used from different threads. Collectives must be issued in the same order by every rank of the communicator.
// Requests end before the communicator they came from.
//
// After an error the world is broken for good: requests may be dropped, but under MPI their buffers may still be
// written until the process ends.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "runtime/base/status.h"

namespace tessera {

using Bytes = std::span<std::byte>;
using ConstBytes = std::span<const std::byte>;

// Payload counted at this rank, self-copies excluded. An all-gather counts its own block once per peer as sent.
struct Traffic {
  int64_t bytes_sent = 0;
  int64_t bytes_received = 0;
  int64_t messages_sent = 0;  // point-to-point sends, and one per peer with a non-empty block in collectives
  int64_t messages_received = 0;
  friend bool operator==(const Traffic&, const Traffic&) = default;
};

// What a rank tells its peers about itself with every heartbeat.
enum class RankState : uint8_t { kIdle, kWaiting, kComputing, kFinished, kFailed };
struct RankProgress {
  RankState state = RankState::kIdle;
  int64_t step = -1;  // plan step last entered, -1 before the first
  friend bool operator==(const RankProgress&, const RankProgress&) = default;
};

inline constexpr int kTagLimit = 1 << 20;  // tags of point-to-point messages lie in [0, kTagLimit)

namespace internal {
class RequestImpl {
 public:
  virtual ~RequestImpl() = default;
  virtual StatusOr<bool> Test() = 0;  // true when complete; called again after an error returns the same error
};
}  // namespace internal

// A pending operation. Dropping an unfinished request is an error of the caller (the buffers may still be written).
class Request {
 public:
  Request() = default;
  explicit Request(std::unique_ptr<internal::RequestImpl> impl) : impl_(std::move(impl)) {}
  // True when complete. A default-constructed request is complete.
  StatusOr<bool> Test() { return impl_ == nullptr ? StatusOr<bool>(true) : impl_->Test(); }

 private:
  std::unique_ptr<internal::RequestImpl> impl_;
};

class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual std::string_view name() const = 0;  // "inproc", "dryrun", "mpi"
  virtual int rank() const = 0;
  virtual int size() const = 0;

  // Point to point; `tag` in [0, 2^20). Messages of one (sender, receiver, tag) arrive in order. Any length, zero too;
  // both sides name the same length, and a mismatch is an error of the receive.
  virtual StatusOr<Request> Send(ConstBytes data, int peer, int tag) = 0;
  virtual StatusOr<Request> Receive(Bytes data, int peer, int tag) = 0;

  // Collective. Counts and displacements are in bytes, one entry per rank, identical meaning to MPI's v-variants.
  // `send` may be this rank's own block of `receive`.
  virtual StatusOr<Request> AllGatherV(ConstBytes send, std::byte* receive, std::span<const int64_t> counts,
                                       std::span<const int64_t> displacements) = 0;
  virtual StatusOr<Request> AllToAllV(const std::byte* send, std::span<const int64_t> send_counts,
                                      std::span<const int64_t> send_displacements, std::byte* receive,
                                      std::span<const int64_t> receive_counts,
                                      std::span<const int64_t> receive_displacements) = 0;
  // Sums fp32 vectors; reduce-scatter leaves rank r with elements [sum(counts[0..r)), +counts[r]). The order of
  // summation is fixed by rank, so results repeat bitwise. `receive` may be the start of `send`'s own block
  // (reduce-scatter) or `send` itself (all-reduce).
  virtual StatusOr<Request> ReduceScatterSum(std::span<const float> send, std::span<float> receive,
                                             std::span<const int64_t> counts) = 0;
  virtual StatusOr<Request> AllReduceSum(std::span<const float> send, std::span<float> receive) = 0;
  virtual StatusOr<Request> Broadcast(Bytes data, int root) = 0;
  virtual StatusOr<Request> Barrier() = 0;

  // Collective over this communicator and blocking (bounded by the deadline): ranks of equal colour form a
  // communicator, ordered by key then rank. Traffic of the new one is counted separately; what the split itself
  // exchanges is not payload and not counted. A negative colour returns null. One rank runs one Split at a time,
  // whichever communicators it holds.
  virtual StatusOr<std::unique_ptr<Communicator>> Split(int color, int key) = 0;

  // What this rank is doing; carried to the peers by the heartbeat. Cheap and wait-free.
  virtual void ReportProgress(RankProgress progress) = 0;
  virtual RankProgress progress() const = 0;  // what this rank reported last
  // OK while every peer is alive; otherwise an Unavailable or DeadlineExceeded error that names the rank that died or
  // stalled and the plan step it was last seen in. Also judges "everybody waits and nobody moves" as a stall. An error
  // stays: later calls return the same one. Communicators made by Split answer for the whole world, in world ranks.
  virtual Status Health() const = 0;
  // The longest silence of a peer, and the longest time without progress while nobody computes.
  virtual std::chrono::milliseconds deadline() const = 0;

  virtual Traffic traffic() const = 0;
  virtual void ResetTraffic() = 0;
};

// Polls until the request is done, yielding with back-off; returns Health()'s error as soon as there is one, and
// DeadlineExceeded naming `what` after deadline() with no progress of any peer. Reports kWaiting while it waits and
// then what was reported before.
Status Wait(Communicator& comm, Request& request, std::string_view what);

}  // namespace tessera
