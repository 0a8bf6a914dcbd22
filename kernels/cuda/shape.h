// What the host side of forward and backward attention share: checks, refusals, and arguments turned into parameters.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "kernels/cuda/attend.h"

namespace tessera::cuda {

// InvalidArgument naming the first field that no kernel can use.
Status CheckShape(const AttendShape& shape);
Status CheckSlopes(const AttendShape& shape, const float* slopes);

// Reasons for a refusal; empty = none.
std::string WhyNotDevice(int compute_capability, int first, int last);
std::string WhyNotDType(DType dtype);
template <typename Instance>
std::string WhyNotWidths(std::span<const Instance> instances) {
  std::string widths;
  for (const Instance& instance : instances) {
    if (instance.dtype != instances[0].dtype) continue;
    absl::StrAppend(&widths, widths.empty() ? "" : ", ", instance.qk_width, "/", instance.v_width);
  }
  return absl::StrCat("query/key and value widths must fit one of those built: ", widths);
}

// Instantiated where the instances are listed.
template <typename Instance>
const Instance* InstanceKernel<Instance>::Find(DType dtype, int qk_width, int v_width) const {
  const Instance* best = nullptr;
  for (const Instance& instance : instances_) {
    if (instance.dtype != dtype || qk_width < 1 || v_width < 1) continue;
    if (instance.qk_width < qk_width || instance.v_width < v_width) continue;
    if (best == nullptr || instance.qk_width + instance.v_width < best->qk_width + best->v_width) best = &instance;
  }
  return best;
}
template <typename Instance>
std::string InstanceKernel<Instance>::WhyNot(const AttendTraits& traits) const {
  std::string reason = WhyNotDevice(traits.compute_capability, first_capability_, last_capability_);
  if (reason.empty()) reason = WhyNotDType(traits.dtype);
  if (!reason.empty()) return reason;
  return Find(traits.dtype, traits.qk_width, traits.v_width) != nullptr ? "" : WhyNotWidths(instances_);
}
Status NoInstance(std::string_view kernel, const AttendShape& shape);

ScoreParams ScoreOf(const AttendShape& shape, const float* slopes);
DeviceWork WorkOn(const std::byte* device, const WorkLayout& layout);

// Whether rows of 16-bit elements start at multiples of 16 bytes and consist of whole 16-byte pieces.
bool HoldsWholeVectors(const ConstDeviceView& view, int width);

template <typename Element>
Matrix<const Element> MatrixOf(const ConstDeviceView& view) {
  return {static_cast<const Element*>(view.data), view.row_stride, view.head_stride};
}
template <typename Element>
Matrix<Element> MatrixOf(const DeviceView& view) {
  return {static_cast<Element*>(view.data), view.row_stride, view.head_stride};
}

}  // namespace tessera::cuda
