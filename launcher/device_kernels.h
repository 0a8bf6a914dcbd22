// The kernels of this process's first GPU behind the interfaces of the processor's, for `tessera bench kernel`. Builds
// with TESSERA_CUDA=ON have device_kernels_cuda.cc, the others device_kernels_none.cc.
#pragma once

#include <memory>
#include <span>
#include <string>

#include "kernels/attention.h"
#include "kernels/decode.h"
#include "kernels/limits.h"
#include "runtime/base/status.h"

namespace tessera::launcher {

class DeviceKernels {
 public:
  virtual ~DeviceKernels() = default;
  virtual std::string device_name() const = 0;  // "GPU 0 (NVIDIA H100 80GB HBM3, 9.0)"
  // Fastest first; the processor's fp64 reference is last. Calls copy tensors to the GPU and results back; only
  // `seconds` leaves that out. The first list is for forward passes, the second for backward ones: an implementation
  // may have one without the other.
  virtual std::span<const AttentionKernel* const> forward() const = 0;
  virtual std::span<const AttentionKernel* const> backward() const = 0;
  virtual std::span<const DecodeKernel* const> decode() const = 0;
  // What the GPU took for the last call, from one event to another around its kernels.
  virtual double seconds() const = 0;
  // bf16_flops: a square product of `matrix_width` by cuBLAS. read_bytes: reading and writing `buffer_bytes` by a copy
  // on the device, both counted. Each the best of some runs.
  virtual StatusOr<MachineLimits> Limits(int matrix_width, int64_t buffer_bytes) = 0;
};

// FailedPrecondition without driver or GPU; Unimplemented when this build has no CUDA.
StatusOr<std::unique_ptr<DeviceKernels>> OpenDeviceKernels();

}  // namespace tessera::launcher
