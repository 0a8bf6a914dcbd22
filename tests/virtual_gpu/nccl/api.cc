// The entry points of NCCL that Tessera may call.
#include <cstdio>
#include <cstdlib>
#include <map>
#include <thread>

#include "tests/virtual_gpu/cudart/vgpu.h"
#include "tests/virtual_gpu/nccl/communicator.h"
#include "tests/virtual_gpu/nccl/group.h"
#include "tests/virtual_gpu/nccl/operations.h"
#include "tests/virtual_gpu/nccl/reduce.h"
#include "tests/virtual_gpu/nccl/version.h"

using namespace tessera::vgpu;

namespace tessera::vgpu {

int Version() {
  static const int version = [] {
    const char* const text = std::getenv("VGPU_NCCL_VERSION");
    return text == nullptr ? NCCL_VERSION_CODE : std::atoi(text);
  }();
  return version;
}

}  // namespace tessera::vgpu

namespace {

struct Handles {
  std::mutex mutex;
  std::map<ncclComm_t, std::shared_ptr<ncclComm>> live;
};
Handles& AllHandles() {
  static Handles* const handles = new Handles;
  return *handles;
}

std::shared_ptr<ncclComm> Find(ncclComm_t handle) {
  const std::lock_guard lock(AllHandles().mutex);
  const auto it = AllHandles().live.find(handle);
  return it == AllHandles().live.end() ? nullptr : it->second;
}

std::shared_ptr<ncclComm> Forget(ncclComm_t handle) {
  const std::lock_guard lock(AllHandles().mutex);
  const auto it = AllHandles().live.find(handle);
  if (it == AllHandles().live.end()) return nullptr;
  std::shared_ptr<ncclComm> comm = std::move(it->second);
  AllHandles().live.erase(it);
  return comm;
}

ncclComm_t Remember(const std::shared_ptr<ncclComm>& comm) {
  const std::lock_guard lock(AllHandles().mutex);
  AllHandles().live[comm.get()] = comm;
  return comm.get();
}

// Runs `initialize` here or, for a non-blocking communicator, on a thread.
template <typename Initialize>
ncclResult_t Start(const std::shared_ptr<ncclComm>& comm, Initialize initialize) {
  comm->state = ncclInProgress;
  if (comm->blocking) return comm->state = initialize(*comm);
  std::thread([comm, initialize] { comm->state = initialize(*comm); }).detach();
  return ncclInProgress;
}

bool Blocking(const ncclConfig_t* config) {
  return config == nullptr || config->blocking == NCCL_CONFIG_UNDEF_INT || config->blocking != 0;
}

ncclResult_t Refuse(const char* what, const std::string& why) {
  std::fprintf(stderr, "vgpu: %s: %s\n", what, why.c_str());
  return FailGroup(ncclInvalidArgument);
}

// What all operations check. `peer` is -1 for those without one.
ncclResult_t Check(ncclComm_t handle, const char* what, ncclDataType_t type, int peer, const void* send,
                   size_t send_count, const void* receive, size_t receive_count) {
  const auto comm = Find(handle);
  if (comm == nullptr) return Refuse(what, "there is no such communicator");
  if (const ncclResult_t state = comm->state; state != ncclSuccess) return FailGroup(ncclInvalidUsage);
  if (BytesOf(type) == 0) return Refuse(what, "this data type is not modelled");
  if (peer < -1 || peer >= comm->ranks) return Refuse(what, "rank " + std::to_string(peer) + " does not exist");
  if (const std::string why = vgpuWhyNoDeviceMemory(send, send_count * BytesOf(type)); !why.empty()) {
    return Refuse(what, "the send buffer: " + why);
  }
  if (const std::string why = vgpuWhyNoDeviceMemory(receive, receive_count * BytesOf(type)); !why.empty()) {
    return Refuse(what, "the receive buffer: " + why);
  }
  return ncclSuccess;
}

}  // namespace

extern "C" {

const char* ncclGetErrorString(ncclResult_t result) {
  switch (result) {
    case ncclSuccess:
      return "no error";
    case ncclUnhandledCudaError:
      return "unhandled cuda error (run with NCCL_DEBUG=INFO for details)";
    case ncclSystemError:
      return "unhandled system error (run with NCCL_DEBUG=INFO for details)";
    case ncclInternalError:
      return "internal error - please report this issue to the NCCL developers";
    case ncclInvalidArgument:
      return "invalid argument (run with NCCL_DEBUG=WARN for details)";
    case ncclInvalidUsage:
      return "invalid usage (run with NCCL_DEBUG=WARN for details)";
    case ncclRemoteError:
      return "remote process exited or there was a network error";
    case ncclInProgress:
      return "NCCL operation in progress";
    default:
      return "unknown result code";
  }
}

const char* ncclGetLastError(ncclComm_t handle) {
  thread_local std::string text;
  const auto comm = Find(handle);
  text = comm == nullptr ? "" : comm->last_error();
  return text.c_str();
}

ncclResult_t ncclGetVersion(int* version) {
  *version = Version();
  return ncclSuccess;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  *id = MakeUniqueId();
  return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t* handle, int ranks, ncclUniqueId id, int rank, ncclConfig_t* config) {
  if (ranks < 1 || rank < 0 || rank >= ranks) return ncclInvalidArgument;
  if (config != nullptr && config->magic != 0xcafebeef) return ncclInvalidArgument;
  const auto comm = std::make_shared<ncclComm>();
  comm->rank = rank;
  comm->ranks = ranks;
  comm->blocking = Blocking(config);
  if (cudaGetDevice(&comm->device) != cudaSuccess) return ncclUnhandledCudaError;
  *handle = Remember(comm);
  return Start(comm, [id](ncclComm& c) { return c.Initialize(id); });
}

ncclResult_t ncclCommInitRank(ncclComm_t* handle, int ranks, ncclUniqueId id, int rank) {
  return ncclCommInitRankConfig(handle, ranks, id, rank, nullptr);
}

ncclResult_t ncclCommSplit(ncclComm_t handle, int color, int key, ncclComm_t* child, ncclConfig_t* config) {
  const auto parent = Find(handle);
  if (parent == nullptr) return ncclInvalidArgument;
  const auto comm = std::make_shared<ncclComm>();
  comm->device = parent->device;
  comm->blocking = config == nullptr ? parent->blocking : Blocking(config);
  *child = color == NCCL_SPLIT_NOCOLOR ? nullptr : Remember(comm);
  const ncclResult_t result =
      Start(comm, [parent, color, key](ncclComm& c) { return c.InitializeFromSplit(*parent, color, key); });
  return color == NCCL_SPLIT_NOCOLOR && !comm->blocking ? ncclSuccess : result;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t handle, ncclResult_t* error) {
  const auto comm = Find(handle);
  if (comm == nullptr) return ncclInvalidArgument;
  *error = comm->state;
  if (*error != ncclSuccess) return ncclSuccess;
  if (comm->polls_due > 0) {
    --comm->polls_due;
    *error = ncclInProgress;
  }
  if (comm->finalizing && !comm->IsIdle()) *error = ncclInProgress;
  return ncclSuccess;
}

ncclResult_t ncclCommFinalize(ncclComm_t handle) {
  const auto comm = Find(handle);
  if (comm == nullptr) return ncclInvalidArgument;
  if (comm->state == ncclInProgress) return ncclInvalidUsage;
  if (!comm->blocking) {
    comm->finalizing = true;
    return ncclInProgress;
  }
  comm->WaitUntilIdle();
  return ncclSuccess;
}

ncclResult_t ncclCommDestroy(ncclComm_t handle) {
  const auto comm = Forget(handle);
  if (comm == nullptr) return ncclInvalidArgument;
  comm->WaitUntilIdle();
  comm->ReturnContext();
  return ncclSuccess;
}

ncclResult_t ncclCommAbort(ncclComm_t handle) {
  const auto comm = Forget(handle);
  if (comm == nullptr) return ncclInvalidArgument;
  comm->Abort();
  return ncclSuccess;
}

ncclResult_t ncclCommCount(const ncclComm_t handle, int* count) {
  const auto comm = Find(handle);
  if (comm == nullptr) return ncclInvalidArgument;
  *count = comm->ranks;
  return ncclSuccess;
}

ncclResult_t ncclCommUserRank(const ncclComm_t handle, int* rank) {
  const auto comm = Find(handle);
  if (comm == nullptr) return ncclInvalidArgument;
  *rank = comm->rank;
  return ncclSuccess;
}

ncclResult_t ncclCommCuDevice(const ncclComm_t handle, int* device) {
  const auto comm = Find(handle);
  if (comm == nullptr) return ncclInvalidArgument;
  *device = comm->device;
  return ncclSuccess;
}

ncclResult_t ncclGroupStart() {
  BeginGroup();
  return ncclSuccess;
}

ncclResult_t ncclGroupEnd() {
  return EndGroup();
}

ncclResult_t ncclSend(const void* send, size_t count, ncclDataType_t type, int peer, ncclComm_t handle,
                      cudaStream_t stream) {
  const auto error = Check(handle, "ncclSend", type, peer, send, count, nullptr, 0);
  if (error != ncclSuccess || count == 0) return error;
  return Enqueue(Find(handle), stream, Message(send, nullptr, count * BytesOf(type), peer));
}

ncclResult_t ncclRecv(void* receive, size_t count, ncclDataType_t type, int peer, ncclComm_t handle,
                      cudaStream_t stream) {
  const auto error = Check(handle, "ncclRecv", type, peer, nullptr, 0, receive, count);
  if (error != ncclSuccess || count == 0) return error;
  return Enqueue(Find(handle), stream, Message(nullptr, receive, count * BytesOf(type), peer));
}

ncclResult_t ncclAllGather(const void* send, void* receive, size_t count, ncclDataType_t type, ncclComm_t handle,
                           cudaStream_t stream) {
  const auto comm = Find(handle);
  const size_t ranks = comm == nullptr ? 1 : comm->ranks;
  const auto error = Check(handle, "ncclAllGather", type, -1, send, count, receive, count * ranks);
  if (error != ncclSuccess || count == 0) return error;
  return Enqueue(comm, stream, AllGather(*comm, send, receive, count * BytesOf(type)));
}

ncclResult_t ncclBroadcast(const void* send, void* receive, size_t count, ncclDataType_t type, int root,
                           ncclComm_t handle, cudaStream_t stream) {
  const auto comm = Find(handle);
  const bool sends = comm != nullptr && comm->rank == root;
  const auto error =
      Check(handle, "ncclBroadcast", type, root, sends ? send : nullptr, sends ? count : 0, receive, count);
  if (error != ncclSuccess || count == 0) return error;
  return Enqueue(comm, stream, Broadcast(*comm, send, receive, count * BytesOf(type), root));
}

ncclResult_t ncclAllReduce(const void* send, void* receive, size_t count, ncclDataType_t type, ncclRedOp_t op,
                           ncclComm_t handle, cudaStream_t stream) {
  const auto error = Check(handle, "ncclAllReduce", type, -1, send, count, receive, count);
  if (error != ncclSuccess || count == 0) return error;
  if (!IsModelled(op)) return Refuse("ncclAllReduce", "this operation is not modelled");
  const auto comm = Find(handle);
  return Enqueue(comm, stream, Reduce(*comm, send, receive, count, {type, op}, -1));
}

ncclResult_t ncclReduce(const void* send, void* receive, size_t count, ncclDataType_t type, ncclRedOp_t op, int root,
                        ncclComm_t handle, cudaStream_t stream) {
  const auto comm = Find(handle);
  const bool receives = comm != nullptr && comm->rank == root;
  const auto error =
      Check(handle, "ncclReduce", type, root, send, count, receives ? receive : nullptr, receives ? count : 0);
  if (error != ncclSuccess || count == 0) return error;
  if (!IsModelled(op)) return Refuse("ncclReduce", "this operation is not modelled");
  return Enqueue(comm, stream, Reduce(*comm, send, receive, count, {type, op}, root));
}

ncclResult_t ncclReduceScatter(const void* send, void* receive, size_t count, ncclDataType_t type, ncclRedOp_t op,
                               ncclComm_t handle, cudaStream_t stream) {
  const auto comm = Find(handle);
  const size_t ranks = comm == nullptr ? 1 : comm->ranks;
  const auto error = Check(handle, "ncclReduceScatter", type, -1, send, count * ranks, receive, count);
  if (error != ncclSuccess || count == 0) return error;
  if (!IsModelled(op)) return Refuse("ncclReduceScatter", "this operation is not modelled");
  return Enqueue(comm, stream, ReduceScatter(*comm, send, receive, count, {type, op}));
}

}  // extern "C"
