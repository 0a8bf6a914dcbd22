#include "tests/unit/kernels/cuda/device_kernel.h"

#include <algorithm>

namespace tessera::testing {
namespace {

size_t SpanBytes(const ConstTensorView& view) {
  if (view.rows == 0 || view.heads == 0) return 0;
  const auto* const begin = static_cast<const std::byte*>(view.data);
  const auto* const last = static_cast<const std::byte*>(view.At(view.rows - 1, view.heads - 1));
  return static_cast<size_t>(last - begin) + view.width * SizeInBytes(view.dtype);
}

// Bytes that a test makes anew for every call.
template <typename T>
DeviceMemory Copied(std::span<const T> values, const DeviceStream& stream) {
  DeviceMemory memory(values.size_bytes());
  memory.CopyFrom(values.data(), values.size_bytes(), stream);
  return memory;
}

}  // namespace

DeviceTensor::DeviceTensor(const ConstTensorView& view, const DeviceStream& stream)
    : row_stride_(view.row_stride),
      head_stride_(view.head_stride),
      bytes_(SpanBytes(view)),
      memory_(bytes_, reinterpret_cast<uintptr_t>(view.data) % 256) {
  memory_.CopyFrom(view.data, bytes_, stream);
}

void DeviceTensor::CopyBack(const TensorView& view, const DeviceStream& stream) const {
  memory_.CopyTo(view.data, bytes_, stream);
}

TensorView OnDevice(const Tensor& tensor, const DeviceTensor& copy) {
  TensorView view = tensor.view();
  view.data = copy.view().data;
  view.space = MemorySpace::kDevice;
  return view;
}

std::string DeviceKernel::WhyNot(const AttentionTraits& traits) const {
  return kernel_.WhyNot({traits.dtype, traits.qk_width, traits.v_width, ComputeCapability()});
}

Status DeviceKernel::Attend(const AttendArgs& args) const {
  const cuda::AttendShape shape = cuda::ShapeOf(args);
  TESSERA_ASSIGN_OR_RETURN(const cuda::AttendWork work, PlanAttend(kernel_, shape, args.tiles, args.bands));
  const DeviceStream stream;
  const DeviceTensor query(args.query, stream), key(args.key, stream), value(args.value, stream);
  const DeviceTensor output(args.output, stream), lse(args.lse, stream);
  const DeviceMemory lists = Copied<std::byte>(work.bytes, stream);
  const DeviceMemory slopes = Copied<float>(args.score.alibi_slopes, stream);
  cuda::AttendPointers pointers;
  pointers.query = query.const_view();
  pointers.key = key.const_view();
  pointers.value = value.const_view();
  pointers.output = output.view();
  pointers.lse = lse.view();
  pointers.work = lists.data();
  if (shape.alibi) pointers.alibi_slopes = reinterpret_cast<const float*>(slopes.data());
  TESSERA_RETURN_IF_ERROR(LaunchAttend(kernel_, shape, work, pointers, stream.get()));
  output.CopyBack(args.output, stream);
  lse.CopyBack(args.lse, stream);
  return absl::OkStatus();
}

Status DeviceKernel::AttendBackward(const AttendBackwardArgs& args) const {
  const cuda::AttendShape shape = cuda::ShapeOf(args);
  TESSERA_ASSIGN_OR_RETURN(const cuda::BackwardWork work, PlanBackward(*backward_, shape, args.tiles, args.bands));
  const DeviceStream stream;
  const DeviceTensor query(args.query, stream), key(args.key, stream), value(args.value, stream);
  const DeviceTensor output_gradient(args.output_gradient, stream), lse(args.lse, stream), delta(args.delta, stream);
  const DeviceTensor query_gradient(args.query_gradient, stream), key_gradient(args.key_gradient, stream);
  const DeviceTensor value_gradient(args.value_gradient, stream);
  const DeviceMemory lists = Copied<std::byte>(work.bytes, stream);
  const DeviceMemory slopes = Copied<float>(args.score.alibi_slopes, stream);
  cuda::BackwardPointers pointers;
  pointers.query = query.const_view();
  pointers.key = key.const_view();
  pointers.value = value.const_view();
  pointers.output_gradient = output_gradient.const_view();
  pointers.lse = lse.const_view();
  pointers.delta = delta.const_view();
  pointers.query_gradient = query_gradient.view();
  pointers.key_gradient = key_gradient.view();
  pointers.value_gradient = value_gradient.view();
  pointers.work = lists.data();
  if (shape.alibi) pointers.alibi_slopes = reinterpret_cast<const float*>(slopes.data());
  TESSERA_RETURN_IF_ERROR(LaunchBackward(*backward_, shape, work, pointers, stream.get()));
  query_gradient.CopyBack(args.query_gradient, stream);
  key_gradient.CopyBack(args.key_gradient, stream);
  value_gradient.CopyBack(args.value_gradient, stream);
  return absl::OkStatus();
}

}  // namespace tessera::testing
