// CUDA kernels behind the interface of the CPU's, so that the same problems and judges serve both: tensors are copied
// to the device with their alignment and their padding, and the results back.
#pragma once

#include <string>

#include "kernels/attention.h"
#include "kernels/attention_backward.h"
#include "kernels/cuda/attend.h"
#include "kernels/cuda/backward.h"
#include "tests/unit/kernels/cuda/device_memory.h"
#include "tests/unit/kernels/problem.h"

namespace tessera::testing {

// The memory a host view spans, on the device.
class DeviceTensor {
 public:
  DeviceTensor(const ConstTensorView& view, const DeviceStream& stream);
  cuda::ConstDeviceView const_view() const { return {memory_.data(), row_stride_, head_stride_}; }
  cuda::DeviceView view() const { return {memory_.data(), row_stride_, head_stride_}; }
  void CopyBack(const TensorView& view, const DeviceStream& stream) const;

 private:
  int64_t row_stride_, head_stride_;
  size_t bytes_;
  DeviceMemory memory_;
};

// The tensor's shape and layout over its copy.
TensorView OnDevice(const Tensor& tensor, const DeviceTensor& copy);

class DeviceKernel final : public AttentionKernel {
 public:
  explicit DeviceKernel(const cuda::AttendKernel& kernel) : kernel_(kernel) {}
  DeviceKernel(const cuda::AttendKernel& kernel, const cuda::BackwardKernel& backward)
      : kernel_(kernel), backward_(&backward) {}
  std::string_view name() const override { return kernel_.name(); }
  std::string WhyNot(const AttentionTraits& traits) const override;
  Status Attend(const AttendArgs& args) const override;
  Status AttendBackward(const AttendBackwardArgs& args) const override;

 private:
  const cuda::AttendKernel& kernel_;
  const cuda::BackwardKernel* backward_ = nullptr;
};

}  // namespace tessera::testing
