// Owned host memory for slots.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "runtime/base/status.h"

namespace tessera {

// Uninitialised, 64-byte aligned host memory; large buffers sit on their own pages, ask for huge ones, and for pages of
// all NUMA nodes that this thread may run on (see numa.h). Move-only.
class HostBuffer {
 public:
  HostBuffer() = default;
  // ResourceExhausted, naming `what` and the size, when the memory is not to be had.
  static StatusOr<HostBuffer> Allocate(int64_t bytes, std::string_view what);

  std::byte* data() const { return data_.get(); }
  int64_t bytes() const { return bytes_; }

 private:
  struct Free {
    void operator()(std::byte* data) const;
  };
  std::unique_ptr<std::byte, Free> data_;
  int64_t bytes_ = 0;
};

}  // namespace tessera
