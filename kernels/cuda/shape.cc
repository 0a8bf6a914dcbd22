#include "kernels/cuda/shape.h"

#include <cmath>
#include <cstdint>

namespace tessera::cuda {
namespace {

Status Reject(const char* field, int64_t value, const std::string& allowed) {
  return absl::InvalidArgumentError(absl::StrCat("cuda attention: ", field, " is ", value, "; it must be ", allowed));
}

}  // namespace

Status CheckShape(const AttendShape& shape) {
  constexpr int kMostHeads = 65535;  // a grid dimension
  if (shape.heads < 1 || shape.heads > kMostHeads) return Reject("heads", shape.heads, "from 1 to 65535");
  if (shape.kv_heads < 1 || shape.kv_heads > kMostHeads) return Reject("kv_heads", shape.kv_heads, "from 1 to 65535");
  if (shape.group < 1) return Reject("group", shape.group, "at least 1");
  if (shape.first_query_head < 0) return Reject("first_query_head", shape.first_query_head, "at least 0");
  if (shape.first_kv_head < 0) return Reject("first_kv_head", shape.first_kv_head, "at least 0");
  const int first = shape.first_query_head / shape.group - shape.first_kv_head;
  const int last = (shape.first_query_head + shape.heads - 1) / shape.group - shape.first_kv_head;
  if (first < 0 || last >= shape.kv_heads) {
    return absl::InvalidArgumentError(
        absl::StrCat("cuda attention: query heads [", shape.first_query_head, ", ",
                     shape.first_query_head + shape.heads, ") in groups of ", shape.group, " read key heads [",
                     shape.first_kv_head + first, ", ", shape.first_kv_head + last + 1, "), but the call has [",
                     shape.first_kv_head, ", ", shape.first_kv_head + shape.kv_heads, ")"));
  }
  if (!std::isfinite(shape.scale)) return absl::InvalidArgumentError("cuda attention: the scale is not finite");
  if (!std::isfinite(shape.soft_cap) || shape.soft_cap < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("cuda attention: soft_cap is ", shape.soft_cap, "; it must be 0 or positive"));
  }
  if (shape.position_offset <= -kTokenLimit || shape.position_offset >= kTokenLimit) {
    return Reject("position_offset", shape.position_offset, "within 2^30");
  }
  return absl::OkStatus();
}

Status CheckSlopes(const AttendShape& shape, const float* slopes) {
  if (shape.alibi == (slopes != nullptr)) return absl::OkStatus();
  return absl::InvalidArgumentError(shape.alibi ? "cuda attention: the shape has alibi, but alibi_slopes is null"
                                                : "cuda attention: alibi_slopes are given, but the shape has no alibi");
}

std::string WhyNotDevice(int compute_capability, int first, int last) {
  if (compute_capability >= first && compute_capability <= last) return "";
  const auto name = [](int c) { return absl::StrCat(c / 10, ".", c % 10); };
  const std::string served = first == last ? name(first) : absl::StrCat(name(first), " and later");
  return absl::StrCat("the device has compute capability ", name(compute_capability), "; it serves ", served);
}

std::string WhyNotDType(DType dtype) {
  if (dtype == DType::kBFloat16 || dtype == DType::kFloat16) return "";
  return absl::StrCat("its tensor core arithmetic takes bf16 and fp16; ", std::string(Name(dtype)),
                      " would lose digits");
}

Status NoInstance(std::string_view kernel, const AttendShape& shape) {
  return absl::InvalidArgumentError(absl::StrCat(std::string(kernel), ": no instance for ",
                                                 std::string(Name(shape.dtype)), " with head widths ", shape.qk_width,
                                                 " and ", shape.v_width));
}

ScoreParams ScoreOf(const AttendShape& shape, const float* slopes) {
  return {shape.scale,
          shape.soft_cap,
          shape.soft_cap > 0 ? shape.scale / shape.soft_cap : 0.0f,
          slopes,
          static_cast<int32_t>(shape.position_offset),
          shape.heads,
          shape.kv_heads,
          shape.first_query_head,
          shape.first_kv_head,
          shape.group,
          shape.qk_width,
          shape.v_width};
}

DeviceWork WorkOn(const std::byte* device, const WorkLayout& layout) {
  return {reinterpret_cast<const RowBlock*>(device + layout.blocks), reinterpret_cast<const Run*>(device + layout.runs),
          reinterpret_cast<const int32_t*>(device + layout.band_numbers),
          reinterpret_cast<const DeviceBand*>(device + layout.bands), layout.block_count};
}

bool HoldsWholeVectors(const ConstDeviceView& view, int width) {
  return reinterpret_cast<uintptr_t>(view.data) % 16 == 0 && view.row_stride % 8 == 0 && view.head_stride % 8 == 0 &&
         width % 8 == 0;
}

}  // namespace tessera::cuda
