#include "kernels/cuda/decode.h"

#include <algorithm>
#include <array>
#include <limits>

#include "kernels/cuda/error.h"
#include "kernels/cuda/shape.h"
#include "kernels/cuda/sm80/decode_config.h"
#include "kernels/cuda/sm90/decode_config.h"
#include "kernels/find_kernel.h"

namespace tessera::cuda {
namespace {

constexpr DType kbf16 = DType::kBFloat16;
constexpr DType kfp16 = DType::kFloat16;

#define TESSERA_CUDA_DECODE(family, dtype, element, qk, v, latent) \
  {k##dtype,                                                       \
   qk,                                                             \
   v,                                                              \
   latent,                                                         \
   family::DecodeConfig<qk, v, latent>::kPairs,                    \
   family::DecodeConfig<qk, v, latent>::kKeys,                     \
   &family::LaunchDecode<element, qk, v, latent>},
#define TESSERA_CUDA_INSTANCE(...) TESSERA_CUDA_DECODE(sm80, __VA_ARGS__)
constexpr DecodeInstance kSm80[] = {
#include "kernels/cuda/decode_instances.inc"
};
#undef TESSERA_CUDA_INSTANCE
#define TESSERA_CUDA_INSTANCE(...) TESSERA_CUDA_DECODE(sm90, __VA_ARGS__)
constexpr DecodeInstance kSm90[] = {
#include "kernels/cuda/decode_instances.inc"
};
#undef TESSERA_CUDA_INSTANCE
#undef TESSERA_CUDA_DECODE

// wgmma exists on 9.0 alone.
const DecodeDeviceKernel kSm90Kernel("cuda-sm90a", kSm90, 90, 90);
const DecodeDeviceKernel kSm80Kernel("cuda-sm80", kSm80, 80, std::numeric_limits<int>::max());

AttendShape AttendShapeOf(const DecodeShape& shape) {
  AttendShape attend;
  attend.dtype = shape.dtype;
  attend.qk_width = shape.qk_width;
  attend.v_width = shape.v_width;
  attend.heads = shape.heads;
  attend.kv_heads = shape.kv_heads;
  attend.first_query_head = shape.first_query_head;
  attend.first_kv_head = shape.first_kv_head;
  attend.group = shape.group;
  attend.scale = shape.scale;
  attend.soft_cap = shape.soft_cap;
  return attend;
}

Status CheckLimits(const DecodeLimits& limits) {
  const auto reject = [](const char* field, int64_t value, const char* allowed) {
    return absl::InvalidArgumentError(absl::StrCat("cuda decode: ", field, " is ", value, "; it must be ", allowed));
  };
  if (limits.sequences < 1 || limits.sequences > 65535) return reject("sequences", limits.sequences, "from 1 to 65535");
  if (limits.rows_per_sequence < 1 || limits.rows_per_sequence > 65536) {
    return reject("rows_per_sequence", limits.rows_per_sequence, "from 1 to 65536");
  }
  if (limits.query_rows < 0) return reject("query_rows", limits.query_rows, "at least 0");
  if (limits.cached_rows < 0 || limits.cached_rows >= int64_t{1} << 31) {
    return reject("cached_rows", limits.cached_rows, "in [0, 2^31)");
  }
  if (limits.multiprocessors < 1) return reject("multiprocessors", limits.multiprocessors, "at least 1");
  return absl::OkStatus();
}

// Strides are in bytes here.
bool HoldsWholeVectors(const std::byte* data, const CacheLayer& cache, int64_t row_stride, int64_t head_stride,
                       int width) {
  const auto bits = reinterpret_cast<uintptr_t>(data) |
                    static_cast<uintptr_t>(cache.page_stride | row_stride | head_stride | 2 * int64_t{width});
  return bits % 16 == 0;
}

}  // namespace

std::string DecodeDeviceKernel::WhyNot(const DecodeDeviceTraits& traits) const {
  std::string reason = WhyNotDevice(traits.compute_capability, first_capability_, last_capability_);
  if (reason.empty()) reason = WhyNotDType(traits.dtype);
  if (!reason.empty()) return reason;
  if (Find(traits.dtype, traits.qk_width, traits.v_width, traits.value_in_key) != nullptr) return "";
  std::vector<DecodeInstance> candidates;
  for (const DecodeInstance& instance : instances_) {
    if (instance.value_in_key == traits.value_in_key) candidates.push_back(instance);
  }
  return absl::StrCat(traits.value_in_key ? "of a latent cache, " : "",
                      WhyNotWidths(std::span<const DecodeInstance>(candidates)));
}

const DecodeInstance* DecodeDeviceKernel::Find(DType dtype, int qk_width, int v_width, bool value_in_key) const {
  const DecodeInstance* best = nullptr;
  for (const DecodeInstance& instance : instances_) {
    if (instance.dtype != dtype || instance.value_in_key != value_in_key || qk_width < 1 || v_width < 1) continue;
    if (instance.qk_width < qk_width || instance.v_width < v_width) continue;
    if (best == nullptr || instance.qk_width + instance.v_width < best->qk_width + best->v_width) best = &instance;
  }
  return best;
}

std::span<const DecodeDeviceKernel* const> DecodeDeviceKernels() {
  static constexpr std::array<const DecodeDeviceKernel*, 2> kKernels = {&kSm90Kernel, &kSm80Kernel};
  return kKernels;
}

StatusOr<const DecodeDeviceKernel*> FindDecodeDeviceKernel(const DecodeDeviceTraits& traits, std::string_view name) {
  return FindKernel(DecodeDeviceKernels(), traits, name, "CUDA decode", "widths");
}

StatusOr<DecodeWork> PlanDecode(const DecodeDeviceKernel& kernel, const DecodeShape& shape,
                                const DecodeLimits& limits) {
  TESSERA_RETURN_IF_ERROR(CheckShape(AttendShapeOf(shape)));
  TESSERA_RETURN_IF_ERROR(CheckLimits(limits));
  DecodeWork work;
  work.limits = limits;
  work.instance = kernel.Find(shape.dtype, shape.qk_width, shape.v_width, shape.value_in_key);
  if (work.instance == nullptr) return NoInstance(kernel.name(), AttendShapeOf(shape));
  const int64_t pairs = int64_t{limits.rows_per_sequence} * std::min(shape.group, shape.heads);
  work.tiles = static_cast<int>((pairs + work.instance->pairs - 1) / work.instance->pairs);
  // Two waves of thread blocks hide uneven sequences; a split of less than four steps would be mostly merging.
  constexpr int64_t kMostSplits = 64;
  const int64_t blocks = int64_t{work.tiles} * shape.kv_heads * limits.sequences;
  const int64_t wanted = (2 * int64_t{limits.multiprocessors} + blocks - 1) / blocks;
  const int64_t useful = limits.cached_rows / (4 * work.instance->keys);
  work.splits = static_cast<int>(std::clamp<int64_t>(std::min(wanted, useful), 1, kMostSplits));
  if (work.splits > 1) {
    work.workspace_bytes = work.splits * limits.query_rows * shape.heads * (int64_t{shape.v_width} + 1) * 4;
  }
  return work;
}

Status LaunchDecode(const DecodeDeviceKernel& kernel, const DecodeShape& shape, const DecodeWork& work,
                    const DecodePointers& pointers, CUstream_st* stream) {
  const CacheLayer& cache = pointers.cache;
  if (work.instance == nullptr ||
      work.instance != kernel.Find(shape.dtype, shape.qk_width, shape.v_width, shape.value_in_key)) {
    return absl::InvalidArgumentError(
        absl::StrCat(std::string(kernel.name()), ": the work was not planned by this kernel for this shape"));
  }
  if (cache.dtype != shape.dtype || cache.qk_width != shape.qk_width || cache.v_width != shape.v_width ||
      cache.kv_heads != shape.kv_heads || cache.page_tokens < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("cuda decode: the cache has ", cache.kv_heads, " heads of ", std::string(Name(cache.dtype)),
                     " with widths ", cache.qk_width, " and ", cache.v_width, " in pages of ", cache.page_tokens,
                     " rows; the shape has ", shape.kv_heads, " heads of ", std::string(Name(shape.dtype)),
                     " with widths ", shape.qk_width, " and ", shape.v_width));
  }
  DecodeParams params;
  params.query = MatrixOf<uint16_t>(pointers.query);
  params.output = MatrixOf<float>(pointers.output);
  params.lse = MatrixOf<float>(pointers.lse);
  params.key = cache.key;
  params.value = cache.value;
  params.page_stride = cache.page_stride;
  params.key_row_stride = cache.key_row_stride;
  params.key_head_stride = cache.key_head_stride;
  params.value_row_stride = cache.value_row_stride;
  params.value_head_stride = cache.value_head_stride;
  params.page_tokens = cache.page_tokens;
  params.sequences = pointers.sequences;
  params.pages = pointers.pages;
  params.visible = pointers.visible;
  params.query_rows = work.limits.query_rows;
  params.split_output = work.splits > 1 ? reinterpret_cast<float*>(pointers.workspace) : nullptr;
  params.split_lse = work.splits > 1
                         ? params.split_output + work.splits * work.limits.query_rows * shape.heads * shape.v_width
                         : nullptr;
  params.sequence_count = work.limits.sequences;
  params.rows_per_sequence = work.limits.rows_per_sequence;
  params.splits = work.splits;
  params.tiles = work.tiles;
  params.score = ScoreOf(AttendShapeOf(shape), nullptr);
  params.vector_query = cuda::HoldsWholeVectors(pointers.query, shape.qk_width);
  params.vector_key = HoldsWholeVectors(cache.key, cache, cache.key_row_stride, cache.key_head_stride, shape.qk_width);
  params.vector_value =
      HoldsWholeVectors(cache.value, cache, cache.value_row_stride, cache.value_head_stride, shape.v_width);
  return CheckLaunch(work.instance->launch(params, stream), kernel.name());
}

}  // namespace tessera::cuda
