// One virtual GPU: its memory, streams and state of health.
#pragma once

#include <cuda_runtime_api.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "tests/virtual_gpu/cudart/config.h"
#include "tests/virtual_gpu/cudart/stream.h"
#include "tests/virtual_gpu/ptx/machine.h"

namespace tessera::vgpu {

class Device {
 public:
  Device(int index, const Config& config);

  int index() const { return index_; }
  const Architecture& architecture() const { return config_.architecture; }
  int64_t total_bytes() const { return config_.memory_bytes; }
  int64_t free_bytes();
  // What kernels may touch. Its locks must not order streams: call it in a NoOrder or Hidden scope.
  AddressSpace& address_space() { return address_space_; }

  // Device memory. Addresses are never used twice, so that a use after free is always told from a use of what came
  // later; freed pages are given back and made inaccessible.
  cudaError_t Allocate(size_t bytes, void** address);  // reserves; not yet accessible
  void Open(void* address);                            // accessible to kernels and copies, full of NaN patterns
  cudaError_t BeginFree(void* address);                // cudaErrorInvalidValue when this is no live allocation
  void EndFree(void* address);                         // no longer accessible
  bool Owns(const void* address) const;                // lies in this device's arena, whether live or not
  // Why [address, address + bytes) is not inside one accessible allocation; empty when it is.
  std::string WhyNotAccessible(const void* address, size_t bytes);
  // Why it is not inside one allocation that is not freed yet, opened or not; empty when it is.
  std::string WhyNotAllocated(const void* address, size_t bytes);
  // The allocation that holds `address`, {0, 0} when none does.
  std::pair<uint64_t, size_t> AllocationOf(const void* address);

  // Streams.
  CUstream_st* legacy_stream() { return legacy_.get(); }
  CUstream_st* CreateStream(bool blocking);
  // The stream of a handle, null when there is none (any more).
  std::shared_ptr<CUstream_st> FindStream(cudaStream_t handle);
  bool DestroyStream(cudaStream_t handle);
  // Submits in the order that the legacy default stream imposes.
  Point Submit(Stream& stream, Work work);
  std::vector<Point> LastPoints();

  // The first fault. Everything submitted later is skipped and every call returns its code.
  bool poisoned() const { return fault_code_.load(std::memory_order_relaxed) != cudaSuccess; }
  cudaError_t fault_code() const { return static_cast<cudaError_t>(fault_code_.load(std::memory_order_relaxed)); }
  std::string fault_text();
  void Poison(cudaError_t code, const std::string& text);
  // cudaDeviceReset: frees everything and makes the device usable again.
  void Reset();

 private:
  // Allocation and release are submitted by the host and happen later, in stream order.
  struct Allocation {
    size_t bytes = 0;
    bool opened = false;  // happened
    bool free_submitted = false;
    bool closed = false;  // the release happened
  };
  using Allocations = std::map<uint64_t, Allocation>;
  std::string WhyNot(const void* address, size_t bytes, bool must_be_accessible);
  size_t AllocationBytes(void* address);
  Allocations::iterator Find(uint64_t address);  // the last allocation that begins at or before it, or end()

  const int index_;
  const Config& config_;
  AddressSpace address_space_;
  std::mutex memory_mutex_;
  uint64_t arena_ = 0;
  uint64_t arena_next_ = 0;
  Allocations allocations_;
  int64_t used_bytes_ = 0;

  std::mutex streams_mutex_;
  std::shared_ptr<CUstream_st> legacy_;
  std::map<CUstream_st*, std::shared_ptr<CUstream_st>> streams_;

  std::atomic<int> fault_code_{cudaSuccess};
  std::mutex fault_mutex_;
  std::string fault_text_;
};

}  // namespace tessera::vgpu
