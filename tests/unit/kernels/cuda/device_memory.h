// Device memory and a stream for kernel tests. Free of CUDA's headers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

struct CUstream_st;

namespace tessera::testing {

// Every failure of the CUDA runtime fails the current test.
class DeviceStream {
 public:
  DeviceStream();
  DeviceStream(const DeviceStream&) = delete;
  ~DeviceStream();
  CUstream_st* get() const { return stream_; }
  void Synchronize() const;

 private:
  CUstream_st* stream_ = nullptr;
};

class DeviceMemory {
 public:
  DeviceMemory() = default;
  // `misaligned` bytes past a multiple of 256.
  explicit DeviceMemory(size_t bytes, size_t misaligned = 0);
  DeviceMemory(DeviceMemory&& other) noexcept { *this = std::move(other); }
  DeviceMemory& operator=(DeviceMemory&& other) noexcept;
  ~DeviceMemory();
  std::byte* data() const { return base_ + misaligned_; }
  void CopyFrom(const void* host, size_t bytes, const DeviceStream& stream) const;
  void CopyTo(void* host, size_t bytes, const DeviceStream& stream) const;

 private:
  std::byte* base_ = nullptr;
  size_t misaligned_ = 0;
};

// 10 * major + minor of device 0.
int ComputeCapability();

}  // namespace tessera::testing
