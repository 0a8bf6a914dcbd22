#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include "tests/unit/kernels/cuda/device_memory.h"

namespace tessera::testing {
namespace {

void Expect(cudaError_t error, const char* what) {
  EXPECT_EQ(error, cudaSuccess) << what << ": " << cudaGetErrorString(error);
}

}  // namespace

DeviceStream::DeviceStream() {
  Expect(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "a stream");
}
DeviceStream::~DeviceStream() {
  if (stream_ != nullptr) Expect(cudaStreamDestroy(stream_), "destroying a stream");
}
void DeviceStream::Synchronize() const {
  Expect(cudaStreamSynchronize(stream_), "synchronising");
}

DeviceMemory::DeviceMemory(size_t bytes, size_t misaligned) : misaligned_(misaligned) {
  void* base = nullptr;
  Expect(cudaMalloc(&base, bytes + misaligned + 1), "device memory");
  base_ = static_cast<std::byte*>(base);
}
DeviceMemory& DeviceMemory::operator=(DeviceMemory&& other) noexcept {
  std::swap(base_, other.base_);
  std::swap(misaligned_, other.misaligned_);
  return *this;
}
DeviceMemory::~DeviceMemory() {
  if (base_ != nullptr) Expect(cudaFree(base_), "freeing");
}
void DeviceMemory::CopyFrom(const void* host, size_t bytes, const DeviceStream& stream) const {
  if (bytes > 0) Expect(cudaMemcpyAsync(data(), host, bytes, cudaMemcpyHostToDevice, stream.get()), "copying there");
  stream.Synchronize();  // the source may be gone after this
}
void DeviceMemory::CopyTo(void* host, size_t bytes, const DeviceStream& stream) const {
  if (bytes > 0) Expect(cudaMemcpyAsync(host, data(), bytes, cudaMemcpyDeviceToHost, stream.get()), "copying back");
  stream.Synchronize();
}

int ComputeCapability() {
  int major = 0, minor = 0;
  Expect(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0), "the compute capability");
  Expect(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0), "the compute capability");
  return 10 * major + minor;
}

}  // namespace tessera::testing
