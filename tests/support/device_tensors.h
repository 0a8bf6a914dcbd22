// Host tensors and their copies on a GPU.
#pragma once

#include <vector>

#include "runtime/base/tensor.h"
#include "runtime/device/cuda/buffer.h"
#include "runtime/device/cuda/stream.h"

namespace tessera::testing {

// A dense device tensor of the host tensor's shape. `gap` elements follow every row, so that it is strided.
class DeviceTensor {
 public:
  static StatusOr<DeviceTensor> Create(const CudaDevice& device, const CudaStream& stream, const ConstTensorView& host,
                                       int64_t gap = 0) {
    DeviceTensor tensor;
    const auto element = static_cast<int64_t>(SizeInBytes(host.dtype));
    const int64_t row_stride = int64_t{host.heads} * host.width + gap;
    TESSERA_ASSIGN_OR_RETURN(tensor.buffer_, DeviceBuffer::Allocate(device, host.rows * row_stride * element,
                                                                    "a test's tensor", stream.handle()));
    tensor.view_ = TensorView::Dense(tensor.buffer_.data(), host.dtype, host.rows, host.heads, host.width);
    tensor.view_.row_stride = row_stride;
    tensor.view_.space = MemorySpace::kDevice;
    tensor.row_bytes_ = int64_t{host.heads} * host.width * element;
    return tensor;
  }
  const TensorView& view() const { return view_; }

  // `host` is dense and stays untouched until the stream has passed.
  Status Fill(const ConstTensorView& host, const CudaStream& stream) const {
    if (view_.rows == 0 || row_bytes_ == 0) return absl::OkStatus();
    return CopyRowsAsync(view_.data, Pitch(), host.data, row_bytes_, row_bytes_, view_.rows, stream.handle());
  }
  Status Fetch(const TensorView& host, const CudaStream& stream) const {
    if (view_.rows == 0 || row_bytes_ == 0) return absl::OkStatus();
    return CopyRowsAsync(host.data, row_bytes_, view_.data, Pitch(), row_bytes_, view_.rows, stream.handle());
  }

 private:
  int64_t Pitch() const { return view_.row_stride * static_cast<int64_t>(SizeInBytes(view_.dtype)); }
  DeviceBuffer buffer_;
  TensorView view_;
  int64_t row_bytes_ = 0;
};

// Numbers on the device; null when there are none.
inline StatusOr<DeviceBuffer> DeviceNumbers(const CudaDevice& device, const CudaStream& stream,
                                            const std::vector<float>& numbers) {
  const auto bytes = static_cast<int64_t>(numbers.size() * sizeof(float));
  TESSERA_ASSIGN_OR_RETURN(DeviceBuffer buffer,
                           DeviceBuffer::Allocate(device, bytes, "a test's numbers", stream.handle()));
  if (bytes > 0) TESSERA_RETURN_IF_ERROR(CopyAsync(buffer.data(), numbers.data(), bytes, stream.handle()));
  return buffer;
}

}  // namespace tessera::testing
