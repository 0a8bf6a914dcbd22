// Bringing weights and tables to the GPU when something is created. Internal to latent attention.
#pragma once

#include <cstddef>
#include <span>
#include <string_view>
#include <vector>

#include "runtime/base/status.h"
#include "runtime/device/cuda/buffer.h"
#include "runtime/device/cuda/device.h"
#include "runtime/device/cuda/stream.h"

namespace tessera {

// Keeps what is on its way. Device memory belongs to `stream`, which outlives it.
class DeviceUploads {
 public:
  DeviceUploads(const CudaDevice& device, CUstream_st* stream) : device_(device), stream_(stream) {}
  DeviceUploads(const DeviceUploads&) = delete;
  DeviceUploads& operator=(const DeviceUploads&) = delete;
  ~DeviceUploads();  // waits too: an error on the way must not pull the memory away under a copy

  // ResourceExhausted names `what`.
  StatusOr<DeviceBuffer> Add(std::vector<std::byte> bytes, std::string_view what);
  StatusOr<DeviceBuffer> Add(std::span<const float> values, std::string_view what);
  // Waits until everything has arrived.
  Status Finish();

 private:
  const CudaDevice device_;
  CUstream_st* const stream_;
  std::vector<std::vector<std::byte>> on_their_way_;
};

}  // namespace tessera
