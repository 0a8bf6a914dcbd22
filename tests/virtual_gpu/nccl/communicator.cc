#include "tests/virtual_gpu/nccl/communicator.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <set>
#include <thread>

#include "tests/virtual_gpu/cudart/order.h"
#include "tests/virtual_gpu/cudart/vgpu.h"
#include "tests/virtual_gpu/nccl/version.h"

using namespace tessera::vgpu;
namespace internal = tessera::internal;

namespace {

// A tag: context, then 0 for messages or 1 + number of the collective * kinds + kind.
constexpr int kCollectiveKinds = 8;
constexpr int kSplitKind = 7;
constexpr int kCollectives = 1 << 18;
constexpr int kTagsPerContext = kCollectives * kCollectiveKinds;  // 512 contexts of them are 2^30
constexpr int kSharedGpuVersion = 23000;

bool MpiIsUsable() {
  int initialized = 0, finalized = 0, threads = MPI_THREAD_SINGLE;
  MPI_Initialized(&initialized);
  MPI_Finalized(&finalized);
  if (initialized && !finalized) MPI_Query_thread(&threads);
  return threads == MPI_THREAD_MULTIPLE;
}

// NCCL refuses two ranks on one GPU, except from 2.30 on when it is told to allow it.
bool MayShareGpu() {
  const char* const enabled = std::getenv("NCCL_MULTI_RANK_GPU_ENABLE");
  return Version() >= kSharedGpuVersion && enabled != nullptr && std::strcmp(enabled, "1") == 0;
}

// A process agrees about one new communicator at a time, so that two do not take the same context.
std::timed_mutex& Agreeing() {
  static auto* const mutex = new std::timed_mutex;
  return *mutex;
}
internal::ContextPool& Contexts() {
  static auto* const contexts = new internal::ContextPool(internal::ContextPool::kCapacity);
  return *contexts;
}

}  // namespace

ncclResult_t ncclComm::Initialize(const ncclUniqueId& id) {
  std::unique_lock agreeing(Agreeing(), std::defer_lock);
  while (!agreeing.try_lock_for(std::chrono::milliseconds(1))) {
    if (aborted) return ncclSystemError;
  }
  Member self{-1, device, Contexts().free()};
  if (ranks > 1) {
    if (!MpiIsUsable()) {
      Fail(ncclSystemError, "the stand-in for NCCL needs MPI_Init_thread with MPI_THREAD_MULTIPLE before");
      return ncclSystemError;
    }
    MPI_Comm_rank(MPI_COMM_WORLD, &self.world_rank);
  }
  std::string error;
  const auto members = Meet(
      id, ranks, rank, self, [this] { return aborted.load(); }, &error);
  if (!members) {
    Fail(ncclSystemError, error);
    return ncclSystemError;
  }
  std::set<int> devices;
  for (const Member& member : *members) devices.insert(member.device);
  if (static_cast<int>(devices.size()) < ranks && !MayShareGpu()) {
    Fail(ncclInvalidUsage, "Duplicate GPU detected: two ranks are on one GPU");
    return ncclInvalidUsage;
  }
  return TakeContext(*members);
}

ncclResult_t ncclComm::TakeContext(const std::vector<Member>& members) {
  internal::ContextPool::Mask free_contexts = Contexts().free();
  for (const Member& member : members) {
    world_ranks_.push_back(member.world_rank);
    for (size_t i = 0; i < free_contexts.size(); ++i) free_contexts[i] &= member.free_contexts[i];
  }
  context_ = internal::ContextPool::Lowest(free_contexts);
  if (context_ < 0) {
    Fail(ncclSystemError, "too many communicators");
    return ncclSystemError;
  }
  Contexts().Take(context_);
  return ncclSuccess;
}

void ncclComm::ReturnContext() {
  if (context_ >= 0 && !aborted) Contexts().Return(context_);
  context_ = -1;
}

ncclResult_t ncclComm::InitializeFromSplit(ncclComm& parent, int color, int key) {
  struct Choice {
    int color, key;
    Member member;
  };
  const std::lock_guard agreeing(Agreeing());
  std::vector<Choice> choices(parent.ranks);
  choices[parent.rank] = {color, key, {parent.world_ranks_[parent.rank], parent.device, Contexts().free()}};
  const int tag = parent.context_ * kTagsPerContext + parent.NextCollectiveTag(kSplitKind);
  std::vector<MPI_Request> requests;
  for (int r = 0; r < parent.ranks; ++r) {
    if (r == parent.rank) continue;
    const int peer = parent.world_ranks_[r];
    MPI_Irecv(&choices[r], sizeof(Choice), MPI_BYTE, peer, tag, MPI_COMM_WORLD, &requests.emplace_back());
    MPI_Isend(&choices[parent.rank], sizeof(Choice), MPI_BYTE, peer, tag, MPI_COMM_WORLD, &requests.emplace_back());
  }
  for (int done = requests.empty(); !done;) {
    if (aborted) return ncclSystemError;
    MPI_Testall(static_cast<int>(requests.size()), requests.data(), &done, MPI_STATUSES_IGNORE);
  }
  if (color < 0) return ncclSuccess;
  std::vector<int> chosen;  // ranks of the parent
  for (int r = 0; r < parent.ranks; ++r) {
    if (choices[r].color == color) chosen.push_back(r);
  }
  std::stable_sort(chosen.begin(), chosen.end(), [&](int a, int b) { return choices[a].key < choices[b].key; });
  ranks = static_cast<int>(chosen.size());
  rank = static_cast<int>(std::find(chosen.begin(), chosen.end(), parent.rank) - chosen.begin());
  std::vector<Member> members;
  for (const int r : chosen) members.push_back(choices[r].member);
  return TakeContext(members);
}

int ncclComm::NextCollectiveTag(int kind) {
  // Ranks that call different collectives never meet: they hang, as they may with NCCL.
  return 1 + static_cast<int>(collectives_++ % (kCollectives - 1)) * kCollectiveKinds + kind;
}

ncclComm::Turn::~Turn() {
  if (number < 0) return;
  HiddenLock hidden(comm->mutex_);
  ++comm->finished_;
  comm->changed_.notify_all();
}

ncclResult_t ncclComm::Submit(std::vector<Operation> operations, cudaStream_t stream) {
  // The turn is decided after the submission, which alone knows whether the stream is captured.
  auto turn = std::make_shared<Turn>();
  turn->comm = shared_from_this();
  bool captured = false;
  const std::string what = operations.front().what;
  const auto run = [operations = std::move(operations), turn] {
    while (turn->number == Turn::kUndecided) std::this_thread::yield();
    const bool entered = turn->comm->Enter(turn->number);
    if (entered) turn->comm->Run(operations);
    turn->comm->Leave(entered);
  };
  if (vgpuSubmit(stream, what, run, &captured) != cudaSuccess) return ncclUnhandledCudaError;
  HiddenLock hidden(mutex_);
  turn->number = captured ? Turn::kAny : submitted_++;
  return ncclSuccess;
}

bool ncclComm::Enter(int64_t turn) {
  HiddenLock hidden(mutex_);
  ++present_;
  changed_.wait(hidden.lock(), [&] { return aborted || (!busy_ && turn <= finished_); });
  if (aborted) return false;
  busy_ = true;
  return true;
}

void ncclComm::Leave(bool entered) {
  HiddenLock hidden(mutex_);
  if (entered) busy_ = false;
  --present_;
  changed_.notify_all();
}

void ncclComm::Run(const std::vector<Operation>& operations) {
  // Host copies of everything that is sent or received. MPI sees nothing else, and never device memory.
  auto blocks = std::make_unique<Blocks>();
  Transfers transfers;
  for (const Operation& operation : operations) {
    for (const Transfer& transfer : operation.transfers) {
      const void* const address = transfer.send != nullptr ? transfer.send : transfer.receive;
      if (!vgpuAccess(address, address == nullptr ? 0 : transfer.bytes, operation.what.c_str())) return;
      transfers.push_back(&transfer);
      blocks->emplace_back(transfer.bytes);
      if (transfer.send != nullptr) std::memcpy(blocks->back().data(), transfer.send, transfer.bytes);
    }
  }
  if (!CopyToItself(transfers, blocks.get())) return;
  switch (Exchange(transfers, blocks.get())) {
    case Outcome::kDone:
      break;
    case Outcome::kFailed:
      return;
    case Outcome::kAborted:
      // MPI may still write there, and a rendezvous send cannot be cancelled: the memory stays.
      (void)blocks.release();
      return;
  }
  size_t next = 0;
  for (const Operation& operation : operations) {
    std::vector<std::vector<std::byte>> arrived;
    for (const Transfer& transfer : operation.transfers) {
      std::vector<std::byte>& block = (*blocks)[next++];
      if (transfer.send != nullptr) continue;
      if (transfer.receive != nullptr) {
        std::memcpy(transfer.receive, block.data(), block.size());
      } else {
        arrived.push_back(std::move(block));
      }
    }
    if (operation.finish) operation.finish(arrived);
  }
}

bool ncclComm::CopyToItself(const Transfers& transfers, Blocks* blocks) {
  size_t send = 0;
  for (size_t i = 0; i < transfers.size(); ++i) {
    if (transfers[i]->peer != rank || transfers[i]->send != nullptr) continue;
    while (send < transfers.size() && (transfers[send]->peer != rank || transfers[send]->send == nullptr)) ++send;
    if (send == transfers.size() || transfers[send]->bytes != transfers[i]->bytes) {
      Fail(ncclInvalidUsage, "sends of a rank to itself do not match its receives in the same group");
      return false;
    }
    (*blocks)[i] = (*blocks)[send++];
  }
  return true;
}

ncclComm::Outcome ncclComm::Exchange(const Transfers& transfers, Blocks* blocks) {
  const Hidden hidden;
  std::vector<MPI_Request> requests(transfers.size(), MPI_REQUEST_NULL);
  bool any = false;
  for (size_t i = 0; i < transfers.size(); ++i) {
    const Transfer& t = *transfers[i];
    if (t.peer == rank) continue;
    any = true;
    std::byte* const data = (*blocks)[i].data();
    const int bytes = static_cast<int>(t.bytes);
    const int peer = world_ranks_[t.peer], tag = context_ * kTagsPerContext + t.tag;
    if (t.send != nullptr) {
      MPI_Issend(data, bytes, MPI_BYTE, peer, tag, MPI_COMM_WORLD, &requests[i]);
    } else {
      MPI_Irecv(data, bytes, MPI_BYTE, peer, tag, MPI_COMM_WORLD, &requests[i]);
    }
  }
  if (!any) return Outcome::kDone;
  std::vector<MPI_Status> statuses(transfers.size());
  int result = MPI_SUCCESS;
  for (int done = 0; !done && result == MPI_SUCCESS;) {
    result = MPI_Testall(static_cast<int>(transfers.size()), requests.data(), &done, statuses.data());
    if (done || result != MPI_SUCCESS) break;
    if (aborted) return Outcome::kAborted;
    std::this_thread::sleep_for(std::chrono::microseconds(20));
  }
  for (size_t i = 0; i < transfers.size(); ++i) {
    if (transfers[i]->send != nullptr || transfers[i]->peer == rank) continue;
    int received = 0;
    MPI_Get_count(&statuses[i], MPI_BYTE, &received);
    if (result == MPI_SUCCESS && received == static_cast<int>(transfers[i]->bytes)) continue;
    Fail(ncclInternalError,
         "a message met a receive of " + std::to_string(transfers[i]->bytes) + " bytes, which is not its length");
    return Outcome::kFailed;
  }
  return Outcome::kDone;
}

void ncclComm::Abort() {
  HiddenLock hidden(mutex_);
  aborted = true;
  changed_.notify_all();
  changed_.wait(hidden.lock(), [&] { return present_ == 0; });
}

bool ncclComm::IsIdle() {
  HiddenLock hidden(mutex_);
  return aborted || (finished_ == submitted_ && !busy_);
}

void ncclComm::WaitUntilIdle() {
  HiddenLock hidden(mutex_);
  changed_.wait(hidden.lock(), [&] { return aborted || (finished_ == submitted_ && !busy_); });
}

void ncclComm::Fail(ncclResult_t code, const std::string& text) {
  HiddenLock hidden(mutex_);
  last_error_ = text;
  state = code;
  std::fprintf(stderr, "vgpu: NCCL rank %d: %s\n", rank, text.c_str());
}

std::string ncclComm::last_error() {
  HiddenLock hidden(mutex_);
  return last_error_;
}
