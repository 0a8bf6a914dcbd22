// Owned device memory and pinned host memory, and moving bytes between them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>

#include "runtime/base/status.h"
#include "runtime/device/cuda/device.h"

struct CUstream_st;

namespace tessera {

// Uninitialised device memory from the GPU's stream-ordered pool, 256-byte aligned. It exists from the point of
// allocation in `stream`'s order and is given back at the point of destruction in the same order, so both cost no
// synchronisation; work on other streams must be ordered between the two by events. The stream outlives the buffer; a
// null stream is the legacy default stream. Move-only. Host code must not touch data().
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  // ResourceExhausted, naming `what`, the size, the GPU and what was free, when the memory is not to be had; nothing is
  // left behind. Zero bytes give a null buffer.
  static StatusOr<DeviceBuffer> Allocate(const CudaDevice& device, int64_t bytes, std::string_view what,
                                         CUstream_st* stream);

  std::byte* data() const { return data_.get(); }
  int64_t bytes() const { return bytes_; }

 private:
  struct Free {
    CUstream_st* stream;
    void operator()(std::byte* data) const;
  };
  std::unique_ptr<std::byte, Free> data_;
  int64_t bytes_ = 0;
};

// Page-locked host memory, which copies to and from the GPU without a detour. Uninitialised, move-only. Freeing it
// waits for the GPU, so keep it. Copies must have ended before.
class PinnedBuffer {
 public:
  PinnedBuffer() = default;
  static StatusOr<PinnedBuffer> Allocate(const CudaDevice& device, int64_t bytes, std::string_view what);

  std::byte* data() const { return data_.get(); }
  int64_t bytes() const { return bytes_; }

 private:
  struct Free {
    void operator()(std::byte* data) const;
  };
  std::unique_ptr<std::byte, Free> data_;
  int64_t bytes_ = 0;
};

// All of these are in stream order. Each side is device or host memory. A host side stays untouched until the stream
// has passed the copy, pinned or not.
Status CopyAsync(void* to, const void* from, int64_t bytes, CUstream_st* stream);
// [rows] rows of `row_bytes`, whose beginnings are a pitch apart on each side.
Status CopyRowsAsync(void* to, int64_t to_pitch_bytes, const void* from, int64_t from_pitch_bytes, int64_t row_bytes,
                     int64_t rows, CUstream_st* stream);
// Sets every byte of device memory to `value`.
Status FillAsync(void* to, uint8_t value, int64_t bytes, CUstream_st* stream);

}  // namespace tessera
