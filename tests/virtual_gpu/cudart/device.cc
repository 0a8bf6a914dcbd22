#include "tests/virtual_gpu/cudart/device.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstring>
#include <utility>

#include "tests/virtual_gpu/cudart/order.h"

namespace tessera::vgpu {
namespace {

// Address space is all that an arena costs. Every allocation takes whole pages and leaves one free behind it.
// ThreadSanitizer keeps books about it, so it gets a smaller one.
#ifdef __SANITIZE_THREAD__
constexpr uint64_t kArenaBytes = uint64_t{1} << 32;
#else
constexpr uint64_t kArenaBytes = uint64_t{1} << 38;
#endif
constexpr uint64_t kPage = 4096;

uint64_t Pages(uint64_t bytes) {
  return (bytes + kPage - 1) / kPage * kPage;
}

std::string Hex(uint64_t value) {
  char text[32];
  std::snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(value));
  return text;
}

}  // namespace

Device::Device(int index, const Config& config) : index_(index), config_(config) {
  void* const arena = mmap(nullptr, kArenaBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (arena != MAP_FAILED) arena_ = arena_next_ = reinterpret_cast<uint64_t>(arena);
  legacy_ = std::make_shared<CUstream_st>(*this, true);
  legacy_->Start();
}

int64_t Device::free_bytes() {
  HiddenLock hidden(memory_mutex_);
  return config_.memory_bytes - used_bytes_;
}

bool Device::Owns(const void* address) const {
  return reinterpret_cast<uint64_t>(address) - arena_ < kArenaBytes;
}

cudaError_t Device::Allocate(size_t bytes, void** address) {
  HiddenLock hidden(memory_mutex_);
  if (arena_ == 0 || bytes > static_cast<uint64_t>(config_.memory_bytes - used_bytes_)) {
    return cudaErrorMemoryAllocation;
  }
  const uint64_t span = Pages(bytes) + kPage;
  if (arena_next_ + span > arena_ + kArenaBytes) return cudaErrorMemoryAllocation;
  *address = reinterpret_cast<void*>(arena_next_);
  allocations_[arena_next_] = {bytes};
  arena_next_ += span;
  used_bytes_ += static_cast<int64_t>(bytes);
  return cudaSuccess;
}

void Device::Open(void* address) {
  size_t bytes = 0;
  {
    HiddenLock hidden(memory_mutex_);
    Allocation& allocation = allocations_.at(reinterpret_cast<uint64_t>(address));
    bytes = allocation.bytes;
    mprotect(address, Pages(bytes), PROT_READ | PROT_WRITE);
    address_space_.Add(reinterpret_cast<uint64_t>(address), bytes);
    allocation.opened = true;
  }
  // All ones are a NaN in fp64, fp32, fp16 and bf16. Outside the lock: this write counts for the race check.
  std::memset(address, 0xff, bytes);
}

cudaError_t Device::BeginFree(void* address) {
  HiddenLock hidden(memory_mutex_);
  const auto it = allocations_.find(reinterpret_cast<uint64_t>(address));
  if (it == allocations_.end() || it->second.free_submitted) {
    std::fprintf(stderr, "vgpu: %s is freed, but it %s\n", Hex(reinterpret_cast<uint64_t>(address)).c_str(),
                 it == allocations_.end() ? "is not the start of an allocation" : "has been freed before");
    return cudaErrorInvalidValue;
  }
  it->second.free_submitted = true;
  used_bytes_ -= static_cast<int64_t>(it->second.bytes);
  return cudaSuccess;
}

void Device::EndFree(void* address) {
  Touch(address, AllocationBytes(address));
  HiddenLock hidden(memory_mutex_);
  Allocation& allocation = allocations_.at(reinterpret_cast<uint64_t>(address));
  if (allocation.closed) return;
  if (allocation.opened) address_space_.Remove(reinterpret_cast<uint64_t>(address));
  madvise(address, Pages(allocation.bytes), MADV_DONTNEED);
  mprotect(address, Pages(allocation.bytes), PROT_NONE);
  allocation.closed = true;
}

size_t Device::AllocationBytes(void* address) {
  HiddenLock hidden(memory_mutex_);
  return allocations_.at(reinterpret_cast<uint64_t>(address)).bytes;
}

Device::Allocations::iterator Device::Find(uint64_t address) {
  auto it = allocations_.upper_bound(address);
  return it == allocations_.begin() ? allocations_.end() : std::prev(it);
}

std::string Device::WhyNot(const void* address, size_t bytes, bool must_be_accessible) {
  const auto begin = reinterpret_cast<uint64_t>(address);
  HiddenLock hidden(memory_mutex_);
  const auto it = Find(begin);
  const std::string range = std::to_string(bytes) + " bytes at " + Hex(begin);
  if (it == allocations_.end()) return range + " lie in no allocation";
  const auto& [base, allocation] = *it;
  const std::string whole = "the allocation of " + std::to_string(allocation.bytes) + " bytes at " + Hex(base) +
                            " of GPU " + std::to_string(index_);
  if (begin - base > allocation.bytes || bytes > allocation.bytes - (begin - base)) {
    return range + " are not inside " + whole;
  }
  if (must_be_accessible) {
    if (!allocation.opened) return range + ": " + whole + " is not yet made in stream order";
    if (allocation.closed) return range + ": " + whole + " was freed";
  } else if (allocation.free_submitted) {
    return range + ": " + whole + " was freed";
  }
  return "";
}

std::string Device::WhyNotAccessible(const void* address, size_t bytes) {
  return WhyNot(address, bytes, true);
}
std::string Device::WhyNotAllocated(const void* address, size_t bytes) {
  return WhyNot(address, bytes, false);
}

std::pair<uint64_t, size_t> Device::AllocationOf(const void* address) {
  HiddenLock hidden(memory_mutex_);
  const auto begin = reinterpret_cast<uint64_t>(address);
  const auto it = Find(begin);
  if (it == allocations_.end() || begin - it->first >= it->second.bytes || it->second.free_submitted) {
    return {0, 0};
  }
  return {it->first, it->second.bytes};
}

CUstream_st* Device::CreateStream(bool blocking) {
  auto stream = std::make_shared<CUstream_st>(*this, blocking);
  stream->Start();
  CUstream_st* const handle = stream.get();
  HiddenLock hidden(streams_mutex_);
  streams_[handle] = std::move(stream);
  return handle;
}

std::shared_ptr<CUstream_st> Device::FindStream(cudaStream_t handle) {
  if (handle == nullptr || handle == cudaStreamLegacy) return legacy_;
  HiddenLock hidden(streams_mutex_);
  const auto it = streams_.find(handle);
  return it == streams_.end() ? nullptr : it->second;
}

bool Device::DestroyStream(cudaStream_t handle) {
  HiddenLock hidden(streams_mutex_);
  const auto it = streams_.find(handle);
  if (it == streams_.end()) return false;
  it->second->Retire();
  streams_.erase(it);
  return true;
}

Point Device::Submit(Stream& stream, Work work) {
  const Point done = std::make_shared<Completion>();
  Release(done.get());
  HiddenLock hidden(streams_mutex_);
  if (&stream == legacy_.get()) {
    for (const auto& [handle, other] : streams_) {
      if (other->blocking()) work.after.push_back(other->last());
    }
  } else if (stream.blocking()) {
    work.after.push_back(legacy_->last());
  }
  stream.Enqueue(std::move(work), done);
  return done;
}

std::vector<Point> Device::LastPoints() {
  HiddenLock hidden(streams_mutex_);
  std::vector<Point> points = {legacy_->last()};
  for (const auto& [handle, stream] : streams_) points.push_back(stream->last());
  return points;
}

std::string Device::fault_text() {
  HiddenLock hidden(fault_mutex_);
  return fault_text_;
}

void Device::Poison(cudaError_t code, const std::string& text) {
  HiddenLock hidden(fault_mutex_);
  if (poisoned()) return;
  fault_text_ = text;
  std::fprintf(stderr, "vgpu: GPU %d: %s\n", index_, text.c_str());
  fault_code_.store(code, std::memory_order_relaxed);
}

void Device::Reset() {
  for (const Point& point : LastPoints()) {
    if (point != nullptr) point->Wait();
  }
  std::vector<void*> live;
  {
    HiddenLock hidden(memory_mutex_);
    for (auto& [base, allocation] : allocations_) {
      if (!allocation.free_submitted) live.push_back(reinterpret_cast<void*>(base));
    }
  }
  for (void* const address : live) {
    if (BeginFree(address) == cudaSuccess) EndFree(address);
  }
  {
    HiddenLock hidden(streams_mutex_);
    for (auto& [handle, stream] : streams_) stream->Retire();
    streams_.clear();
  }
  HiddenLock hidden(fault_mutex_);
  fault_text_.clear();
  fault_code_.store(cudaSuccess, std::memory_order_relaxed);
}

}  // namespace tessera::vgpu
