// Attention on a CUDA device: planned once for given tiles and masks, then launched any number of times. A launch is
// asynchronous on its stream, allocates nothing and may be captured into a graph. Semantics as in kernels/attention.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/cuda/device/attend_params.h"
#include "kernels/cuda/work.h"
#include "runtime/base/dtype.h"
#include "runtime/base/geometry.h"
#include "runtime/base/status.h"

struct CUstream_st;  // what cudaStream_t points to

namespace tessera::cuda {

// What an implementation is asked about before it is chosen.
struct AttendTraits {
  DType dtype = DType::kBFloat16;
  int qk_width = 0;
  int v_width = 0;
  int compute_capability = 0;  // 10 * major + minor of the device
};

// What one call computes, its rows apart. Heads, widths and score options as in AttendArgs.
struct AttendShape {
  DType dtype = DType::kBFloat16;
  int qk_width = 0;
  int v_width = 0;
  int heads = 0;
  int kv_heads = 0;
  int first_query_head = 0;
  int first_kv_head = 0;
  int group = 1;
  float scale = 1.0f;
  float soft_cap = 0.0f;  // 0 = off
  bool alibi = false;
  int64_t position_offset = 0;
};

// That of a call of the processor's kernels (AttendArgs, AttendBackwardArgs).
template <typename Args>
AttendShape ShapeOf(const Args& args) {
  AttendShape shape;
  shape.dtype = args.query.dtype;
  shape.qk_width = args.query.width;
  shape.v_width = args.value.width;
  shape.heads = args.query.heads;
  shape.kv_heads = args.key.heads;
  shape.first_query_head = args.first_query_head;
  shape.first_kv_head = args.first_kv_head;
  shape.group = args.group;
  shape.scale = args.score.scale;
  shape.soft_cap = args.score.soft_cap;
  shape.alibi = !args.score.alibi_slopes.empty();
  shape.position_offset = args.score.position_offset;
  return shape;
}

// [rows, heads, width] in device memory with unit width stride; strides in elements.
struct DeviceView {
  void* data = nullptr;
  int64_t row_stride = 0;
  int64_t head_stride = 0;
};
struct ConstDeviceView {
  const void* data = nullptr;
  int64_t row_stride = 0;
  int64_t head_stride = 0;
};

struct AttendPointers {
  ConstDeviceView query;                // [Sq, heads, qk_width]     the shape's dtype
  ConstDeviceView key;                  // [Sk, kv_heads, qk_width]  likewise
  ConstDeviceView value;                // [Sk, kv_heads, v_width]   likewise
  DeviceView output;                    // [Sq, heads, v_width] fp32 partial O, read and written
  DeviceView lse;                       // [Sq, heads] fp32 partial LSE (natural logarithm), read and written
  const float* alibi_slopes = nullptr;  // [heads], device; null unless the shape has alibi
  const std::byte* work = nullptr;      // AttendWork::bytes, device, at a multiple of 16 bytes
};

// One compiled kernel.
struct AttendInstance {
  DType dtype;
  int qk_width;
  int v_width;
  int block_rows;
  int run_rows;
  int (*launch)(const AttendParams&, CUstream_st*);  // returns a cudaError_t
};

// A call's work, planned for one instance.
struct AttendWork {
  std::vector<std::byte> bytes;  // to be copied to the device once
  WorkLayout layout;
  TileRows rows;
  const AttendInstance* instance = nullptr;
};

// One family of kernels, able to say why it cannot serve. Instances are static and immutable, of a dtype, qk_width and
// v_width each.
template <typename Instance>
class InstanceKernel {
 public:
  // Serves compute capabilities [first_capability, last_capability].
  InstanceKernel(std::string_view name, std::span<const Instance> instances, int first_capability, int last_capability)
      : name_(name), instances_(instances), first_capability_(first_capability), last_capability_(last_capability) {}
  std::string_view name() const { return name_; }
  // Empty when served, otherwise the reason.
  std::string WhyNot(const AttendTraits& traits) const;
  // The narrowest instance that holds these widths; null when there is none.
  const Instance* Find(DType dtype, int qk_width, int v_width) const;

 private:
  const std::string_view name_;
  const std::span<const Instance> instances_;
  const int first_capability_, last_capability_;
};
using AttendKernel = InstanceKernel<AttendInstance>;

// All implementations compiled in, fastest first.
std::span<const AttendKernel* const> AttendKernels();
// As FindAttentionKernel.
StatusOr<const AttendKernel*> FindAttendKernel(const AttendTraits& traits, std::string_view name = {});

// Pure. `tiles` and `bands` as in AttendArgs. InvalidArgument naming the field, its value and what is allowed.
StatusOr<AttendWork> PlanAttend(const AttendKernel& kernel, const AttendShape& shape, std::span<const Tile> tiles,
                                std::span<const Band> bands);

// Folds the planned keys into the partials. `work` was planned by `kernel` for `shape`. Internal when the device
// refuses the launch; what happens later shows on the stream.
Status LaunchAttend(const AttendKernel& kernel, const AttendShape& shape, const AttendWork& work,
                    const AttendPointers& pointers, CUstream_st* stream);

}  // namespace tessera::cuda
