// The stand-in's communicators: what they are, how they come to be, and running their operations over MPI.
#pragma once

#include <cuda_runtime_api.h>
#include <mpi.h>
#include <nccl.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "tests/virtual_gpu/nccl/rendezvous.h"

namespace tessera::vgpu {

// One block of device memory that goes to or comes from a peer. Messages of one tag between two ranks match in order.
struct Transfer {
  int peer;
  int tag;
  const void* send;  // device memory, null for a receive
  void* receive;     // device memory or, for `scratch`, null
  size_t bytes;
};

// What one operation moves and, when all has arrived, computes. Operations of one ncclGroup are carried out together.
struct Operation {
  std::string what;
  std::vector<Transfer> transfers;
  // Called with what arrived for the receives without an address, in their order.
  std::function<void(const std::vector<std::vector<std::byte>>& arrived)> finish;
};

}  // namespace tessera::vgpu

struct ncclComm : std::enable_shared_from_this<ncclComm> {
  using Operation = tessera::vgpu::Operation;

  int rank = 0;
  int ranks = 1;
  int device = 0;
  bool blocking = true;

  // Finds those who meet under `id`. Any thread.
  ncclResult_t Initialize(const ncclUniqueId& id);
  // Collective over the parent.
  ncclResult_t InitializeFromSplit(ncclComm& parent, int color, int key);

  // Carries out the operations in stream order: every send is rendezvous, so the stream stands still until all peers
  // are there. Rounds of one communicator run one at a time, in the order of submission.
  ncclResult_t Submit(std::vector<Operation> operations, cudaStream_t stream);
  int NextCollectiveTag(int kind);  // kind in [0, 7)

  void Abort();  // ends rounds that wait; returns when none is running any more
  bool IsIdle();
  void WaitUntilIdle();
  void ReturnContext();  // for destroy; an aborted communicator keeps its own, because messages may be pending
  void Fail(ncclResult_t code, const std::string& text);
  std::string last_error();

  std::atomic<ncclResult_t> state{ncclSuccess};  // ncclInProgress while initialising, then the asynchronous error
  std::atomic<bool> aborted{false};
  std::atomic<bool> finalizing{false};
  // Calls of ncclCommGetAsyncError that still say ncclInProgress: callers of non-blocking communicators must poll.
  std::atomic<int> polls_due{0};

 private:
  // The place of a round in the order of submission. It ends with the round's last reference, also when the round is
  // dropped because the device is poisoned.
  struct Turn {
    static constexpr int64_t kUndecided = -2, kAny = -1;  // kAny: replayed by a graph
    ~Turn();
    std::shared_ptr<ncclComm> comm;
    std::atomic<int64_t> number{kUndecided};
  };
  enum class Outcome { kDone, kFailed, kAborted };
  using Transfers = std::vector<const tessera::vgpu::Transfer*>;
  using Blocks = std::vector<std::vector<std::byte>>;  // host memory, one per transfer
  ncclResult_t TakeContext(const std::vector<tessera::vgpu::Member>& members);
  void Run(const std::vector<Operation>& operations);
  bool CopyToItself(const Transfers& transfers, Blocks* blocks);
  Outcome Exchange(const Transfers& transfers, Blocks* blocks);
  bool Enter(int64_t turn);  // false when aborted
  void Leave(bool entered);

  // Messages travel over MPI_COMM_WORLD, which Tessera leaves alone; the context in their tags tells communicators
  // apart. (MPI communicators would do that by themselves, but Open MPI 4.1.4 corrupts its heap when two threads make
  // some at the same time.)
  std::vector<int> world_ranks_;
  int context_ = -1;

  std::mutex mutex_;
  std::condition_variable changed_;
  int64_t submitted_ = 0;  // turns given out
  int64_t finished_ = 0;
  bool busy_ = false;  // a round runs
  int present_ = 0;    // rounds that wait for their turn or run
  int64_t collectives_ = 0;
  std::string last_error_;
};
