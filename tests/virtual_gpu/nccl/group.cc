#include "tests/virtual_gpu/nccl/group.h"

#include <algorithm>

namespace tessera::vgpu {
namespace {

struct Call {
  std::shared_ptr<ncclComm> comm;
  cudaStream_t stream;
  Operation operation;
};
struct Group {
  int depth = 0;
  ncclResult_t error = ncclSuccess;
  std::vector<Call> calls;
};
Group& Current() {
  thread_local Group group;
  return group;
}

// Makes `later` wait for what `earlier` has so far.
bool Order(cudaStream_t earlier, cudaStream_t later) {
  cudaEvent_t event = nullptr;
  const bool ok = cudaEventCreateWithFlags(&event, cudaEventDisableTiming) == cudaSuccess &&
                  cudaEventRecord(event, earlier) == cudaSuccess && cudaStreamWaitEvent(later, event, 0) == cudaSuccess;
  if (event != nullptr) cudaEventDestroy(event);
  return ok;
}

// All calls of one communicator: one round on the first call's stream, between which and the other streams NCCL orders
// in both directions.
ncclResult_t SubmitRound(const std::shared_ptr<ncclComm>& comm, std::vector<Call>& calls) {
  std::vector<cudaStream_t> streams;
  std::vector<Operation> operations;
  for (Call& call : calls) {
    if (call.comm != comm) continue;
    if (std::find(streams.begin(), streams.end(), call.stream) == streams.end()) streams.push_back(call.stream);
    operations.push_back(std::move(call.operation));
  }
  for (size_t i = 1; i < streams.size(); ++i) {
    if (!Order(streams[i], streams[0])) return ncclUnhandledCudaError;
  }
  if (const ncclResult_t error = comm->Submit(std::move(operations), streams[0]); error != ncclSuccess) return error;
  for (size_t i = 1; i < streams.size(); ++i) {
    if (!Order(streams[0], streams[i])) return ncclUnhandledCudaError;
  }
  return ncclSuccess;
}

ncclResult_t SubmitAll(std::vector<Call> calls) {
  ncclResult_t result = ncclSuccess;
  std::vector<std::shared_ptr<ncclComm>> done;
  for (const Call& call : calls) {
    if (std::find(done.begin(), done.end(), call.comm) != done.end()) continue;
    done.push_back(call.comm);
    if (const ncclResult_t error = SubmitRound(done.back(), calls); error != ncclSuccess) return error;
    if (!done.back()->blocking) {
      done.back()->polls_due = 1;
      result = ncclInProgress;
    }
  }
  return result;
}

}  // namespace

void BeginGroup() {
  ++Current().depth;
}

ncclResult_t EndGroup() {
  Group& group = Current();
  if (group.depth == 0) return ncclInvalidUsage;
  if (--group.depth > 0) return ncclSuccess;
  std::vector<Call> calls = std::exchange(group.calls, {});
  if (const ncclResult_t error = std::exchange(group.error, ncclSuccess); error != ncclSuccess) return error;
  return SubmitAll(std::move(calls));
}

ncclResult_t Enqueue(const std::shared_ptr<ncclComm>& comm, cudaStream_t stream, Operation operation) {
  Group& group = Current();
  std::vector<Call> calls;
  calls.push_back({comm, stream, std::move(operation)});
  if (group.depth == 0) return SubmitAll(std::move(calls));
  group.calls.push_back(std::move(calls.front()));
  return ncclSuccess;
}

ncclResult_t FailGroup(ncclResult_t error) {
  if (Group& group = Current(); group.depth > 0 && group.error == ncclSuccess) group.error = error;
  return error;
}

}  // namespace tessera::vgpu
