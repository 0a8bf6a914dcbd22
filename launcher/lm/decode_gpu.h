// What the decode subjects on GPUs share: a rank's GPU, its stream and its way to the others.
#pragma once

#include <memory>

#include "collectives/communicator.h"
#include "collectives/stream_communicator.h"
#include "kernels/cuda/row_ops.h"
#include "runtime/device/cuda/buffer.h"
#include "runtime/device/cuda/stream.h"
#include "runtime/engine/cuda/cache.h"

namespace tessera::launcher {

struct DecodeGpu {
  // Collective. Errors as OpenDeviceOfRank and MakeNcclCommunicator.
  static StatusOr<std::unique_ptr<DecodeGpu>> Open(Communicator& comm);

  // Memory of the stream; ResourceExhausted names `what`.
  StatusOr<DeviceBuffer> Allocate(int64_t bytes, std::string_view what) const;
  // A copy on the GPU of `bytes` of host memory; waits for it.
  StatusOr<DeviceBuffer> Upload(const void* from, int64_t bytes, std::string_view what) const;
  // Copies from device memory to `to` and waits.
  Status Fetch(void* to, const DeviceBuffer& from, int64_t bytes) const;
  // Stores dense host rows [count, kv heads, width] as the local rows from `first` on of a sequence, of layer 0, and
  // waits.
  Status StoreRows(const CudaPagedCache& cache, SequenceId sequence, int64_t first, cuda::CachePart part,
                   const TensorView& rows) const;

  CudaDevice device;
  CudaStream stream;
  std::unique_ptr<StreamCommunicator> data;
};

}  // namespace tessera::launcher
