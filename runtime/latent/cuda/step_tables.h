// The positions of a step's rows and their places in the cache, in device memory: uploaded once per step, read by every
// layer. Internal to latent attention.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/cuda/device/row_ops.h"
#include "runtime/base/status.h"
#include "runtime/device/cuda/buffer.h"
#include "runtime/device/cuda/stream.h"

namespace tessera {

class LatentStepTables {
 public:
  // Memory belongs to `stream`, which outlives this.
  static StatusOr<LatentStepTables> Create(const CudaDevice& device, int64_t max_rows, CUstream_st* stream);

  // At most max_rows of each, as many of one as of the other. Asynchronous; at most one upload runs ahead: the next
  // waits on the host until the stream has passed this one.
  Status Upload(std::span<const int64_t> positions, std::span<const cuda::CacheSlot> slots);

  const int64_t* positions() const { return reinterpret_cast<const int64_t*>(tables_.data()); }
  const cuda::CacheSlot* slots() const {
    return reinterpret_cast<const cuda::CacheSlot*>(tables_.data() + slots_offset_);
  }

 private:
  LatentStepTables() = default;
  int64_t slots_offset_ = 0;
  PinnedBuffer staging_;
  DeviceBuffer tables_;  // [max_rows] positions, [max_rows] slots
  CudaEvent copied_;     // the last upload
  CUstream_st* stream_ = nullptr;
};

}  // namespace tessera
