// An owning dense tensor in host memory.
#pragma once

#include <cstdlib>
#include <memory>

#include "runtime/base/status.h"
#include "runtime/base/tensor.h"

namespace tessera::launcher {

class HostTensor {
 public:
  HostTensor() = default;
  // Uninitialised: pages that are never touched cost no memory. ResourceExhausted names the bytes asked for.
  static StatusOr<HostTensor> Allocate(DType dtype, int64_t rows, int heads, int width);

  const TensorView& view() const { return view_; }

 private:
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  std::unique_ptr<void, Free> memory_;
  TensorView view_;
};

}  // namespace tessera::launcher
