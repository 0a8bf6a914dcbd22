#include "tests/virtual_gpu/nccl/operations.h"

#include <cstring>
#include <utility>

#include "tests/virtual_gpu/cudart/vgpu.h"
#include "tests/virtual_gpu/nccl/reduce.h"

namespace tessera::vgpu {
namespace {

enum Kind { kAllGather, kBroadcast, kReduce, kAllReduce, kReduceScatter };
constexpr int kMessageTag = 0;

const char* At(const void* base, size_t offset) {
  return static_cast<const char*>(base) + offset;
}
char* At(void* base, size_t offset) {
  return static_cast<char*>(base) + offset;
}

// Combines blocks that arrived from ranks 0, 1, ... into device memory. NCCL promises no order of summation, so this
// takes one that no caller expects: from `first` downwards, around.
std::function<void(const std::vector<std::vector<std::byte>>&)> Combine(void* receive, size_t count,
                                                                        Reduction reduction, int first,
                                                                        const char* what) {
  return [=](const std::vector<std::vector<std::byte>>& arrived) {
    const int ranks = static_cast<int>(arrived.size());
    if (ranks == 0) return;
    std::vector<std::byte> sum = arrived[first];
    for (int i = 1; i < ranks; ++i) {
      Accumulate(reduction.type, reduction.op, count, sum.data(), arrived[(first + ranks - i) % ranks].data());
    }
    if (reduction.op == ncclAvg) Divide(reduction.type, count, sum.data(), ranks);
    if (vgpuAccess(receive, sum.size(), what)) std::memcpy(receive, sum.data(), sum.size());
  };
}

}  // namespace

Operation Message(const void* send, void* receive, size_t bytes, int peer) {
  return {send != nullptr ? "ncclSend" : "ncclRecv", {{peer, kMessageTag, send, receive, bytes}}, nullptr};
}

Operation AllGather(ncclComm& comm, const void* send, void* receive, size_t bytes) {
  Operation operation{"ncclAllGather", {}, nullptr};
  const int tag = comm.NextCollectiveTag(kAllGather);
  for (int r = 0; r < comm.ranks; ++r) {
    operation.transfers.push_back({r, tag, send, nullptr, bytes});
    operation.transfers.push_back({r, tag, nullptr, At(receive, r * bytes), bytes});
  }
  return operation;
}

Operation Broadcast(ncclComm& comm, const void* send, void* receive, size_t bytes, int root) {
  Operation operation{"ncclBroadcast", {}, nullptr};
  const int tag = comm.NextCollectiveTag(kBroadcast);
  for (int r = 0; comm.rank == root && r < comm.ranks; ++r) {
    operation.transfers.push_back({r, tag, send, nullptr, bytes});
  }
  operation.transfers.push_back({root, tag, nullptr, receive, bytes});
  return operation;
}

Operation Reduce(ncclComm& comm, const void* send, void* receive, size_t count, Reduction reduction, int root) {
  const size_t bytes = count * BytesOf(reduction.type);
  const char* const what = root < 0 ? "ncclAllReduce" : "ncclReduce";
  Operation operation{what, {}, nullptr};
  const int tag = comm.NextCollectiveTag(root < 0 ? kAllReduce : kReduce);
  const bool receives = root < 0 || comm.rank == root;
  for (int r = 0; r < comm.ranks; ++r) {
    if (root < 0 || r == root) operation.transfers.push_back({r, tag, send, nullptr, bytes});
    if (receives) operation.transfers.push_back({r, tag, nullptr, nullptr, bytes});
  }
  if (receives) operation.finish = Combine(receive, count, reduction, comm.ranks - 1, what);
  return operation;
}

Operation ReduceScatter(ncclComm& comm, const void* send, void* receive, size_t count, Reduction reduction) {
  const size_t bytes = count * BytesOf(reduction.type);
  Operation operation{"ncclReduceScatter", {}, nullptr};
  const int tag = comm.NextCollectiveTag(kReduceScatter);
  for (int r = 0; r < comm.ranks; ++r) {
    operation.transfers.push_back({r, tag, At(send, r * bytes), nullptr, bytes});
    operation.transfers.push_back({r, tag, nullptr, nullptr, bytes});
  }
  operation.finish = Combine(receive, count, reduction, comm.rank, "ncclReduceScatter");
  return operation;
}

}  // namespace tessera::vgpu
