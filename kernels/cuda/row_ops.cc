#include "kernels/cuda/row_ops.h"

#include <bit>
#include <cmath>

#include "kernels/cuda/element_type.h"
#include "kernels/cuda/error.h"

namespace tessera::cuda {
namespace {

Status CheckSameShape(std::string_view what, const ConstTensorView& a, const ConstTensorView& b) {
  if (a.rows == b.rows && a.heads == b.heads && a.width == b.width) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("cuda ", std::string(what), ": the input is [", a.rows, ", ", a.heads,
                                                 ", ", a.width, "], the output [", b.rows, ", ", b.heads, ", ", b.width,
                                                 "]; they must agree"));
}

Status CopyCache(const ConstTensorView& rows, const CacheSlot* slots, const CacheLayer& cache, CachePart part,
                 bool into_pool, CUstream_st* stream) {
  const bool keys = part == CachePart::kKeys;
  const int width = keys ? cache.qk_width : cache.v_width;
  if (rows.dtype != cache.dtype || rows.heads != cache.kv_heads || rows.width != width) {
    return absl::InvalidArgumentError(absl::StrCat(
        "cuda cache: rows of ", rows.heads, " heads of width ", rows.width, " in ", std::string(Name(rows.dtype)),
        "; the cache has ", cache.kv_heads, " heads of width ", width, " in ", std::string(Name(cache.dtype))));
  }
  const auto element = static_cast<int64_t>(SizeInBytes(rows.dtype));
  CacheCopyParams params;
  params.pool = const_cast<std::byte*>(keys ? cache.key : cache.value);
  params.page_stride = cache.page_stride;
  params.row_stride = keys ? cache.key_row_stride : cache.value_row_stride;
  params.head_stride = keys ? cache.key_head_stride : cache.value_head_stride;
  params.dense = static_cast<std::byte*>(const_cast<void*>(rows.data));
  params.dense_row_stride = rows.row_stride * element;
  params.dense_head_stride = rows.head_stride * element;
  params.slots = slots;
  params.rows = rows.rows;
  params.heads = rows.heads;
  params.row_bytes = static_cast<int32_t>(width * element);
  params.into_pool = into_pool;
  return CheckLaunch(LaunchCacheCopy(params, stream), into_pool ? "cache append" : "cache gather");
}

}  // namespace

Status RmsNormRows(const ConstTensorView& in, const float* gamma, float epsilon, const TensorView& out,
                   CUstream_st* stream) {
  TESSERA_RETURN_IF_ERROR(CheckSameShape("rms norm", in, out));
  TESSERA_ASSIGN_OR_RETURN(const ElementType in_type, ElementTypeOf(in.dtype, "rms norm"));
  TESSERA_ASSIGN_OR_RETURN(const ElementType out_type, ElementTypeOf(out.dtype, "rms norm"));
  return CheckLaunch(LaunchRmsNorm({{in.data, in.row_stride, in.head_stride},
                                    in_type,
                                    {out.data, out.row_stride, out.head_stride},
                                    out_type,
                                    gamma,
                                    epsilon,
                                    {in.rows, in.heads, in.width}},
                                   stream),
                     "rms norm");
}

Status ScaleRows(const ConstTensorView& in, float scale, const TensorView& out, CUstream_st* stream) {
  TESSERA_RETURN_IF_ERROR(CheckSameShape("scale", in, out));
  TESSERA_ASSIGN_OR_RETURN(const ElementType in_type, ElementTypeOf(in.dtype, "scale"));
  TESSERA_ASSIGN_OR_RETURN(const ElementType out_type, ElementTypeOf(out.dtype, "scale"));
  return CheckLaunch(LaunchScale({{in.data, in.row_stride, in.head_stride},
                                  in_type,
                                  {out.data, out.row_stride, out.head_stride},
                                  out_type,
                                  scale,
                                  {in.rows, in.heads, in.width}},
                                 stream),
                     "scale");
}

std::vector<float> RopeTableValues(const RopeOptions& options, int width, int64_t positions) {
  const RopeFrequencies frequencies = ComputeRopeFrequencies(options, width);
  std::vector<float> table;
  table.reserve(positions * (width / 2) * 2);
  for (int64_t position = 0; position < positions; ++position) {
    for (double frequency : frequencies.frequency) {
      const double angle = static_cast<double>(position) * frequency;
      table.push_back(static_cast<float>(std::cos(angle) * frequencies.attention_factor));
      table.push_back(static_cast<float>(std::sin(angle) * frequencies.attention_factor));
    }
  }
  return table;
}

Status RotateRows(const TensorView& rows, const int64_t* positions, const float* table, RopeLayout layout,
                  CUstream_st* stream) {
  TESSERA_ASSIGN_OR_RETURN(const ElementType type, ElementTypeOf(rows.dtype, "rope"));
  if (rows.width % 2 != 0) {
    return absl::InvalidArgumentError(absl::StrCat("cuda rope: the width is ", rows.width, "; it must be even"));
  }
  return CheckLaunch(LaunchRope({{rows.data, rows.row_stride, rows.head_stride},
                                 type,
                                 positions,
                                 table,
                                 layout == RopeLayout::kInterleaved,
                                 {rows.rows, rows.heads, rows.width}},
                                stream),
                     "rope");
}

Status HadamardRows(const ConstTensorView& in, const float* signs, const TensorView& out, CUstream_st* stream) {
  constexpr int kMostWidth = 8192;  // 32 KiB of fp32 in shared memory
  TESSERA_RETURN_IF_ERROR(CheckSameShape("hadamard", in, out));
  TESSERA_ASSIGN_OR_RETURN(const ElementType in_type, ElementTypeOf(in.dtype, "hadamard"));
  TESSERA_ASSIGN_OR_RETURN(const ElementType out_type, ElementTypeOf(out.dtype, "hadamard"));
  if (in.width > kMostWidth || !std::has_single_bit(static_cast<unsigned>(in.width))) {
    return absl::InvalidArgumentError(
        absl::StrCat("cuda hadamard: the width is ", in.width, "; it must be a power of two up to ", kMostWidth));
  }
  return CheckLaunch(LaunchHadamard({{in.data, in.row_stride, in.head_stride},
                                     in_type,
                                     {out.data, out.row_stride, out.head_stride},
                                     out_type,
                                     signs,
                                     {in.rows, in.heads, in.width}},
                                    stream),
                     "hadamard");
}

Status AppendToCache(const ConstTensorView& rows, const CacheSlot* slots, const CacheLayer& cache, CachePart part,
                     CUstream_st* stream) {
  return CopyCache(rows, slots, cache, part, true, stream);
}

Status GatherFromCache(const CacheLayer& cache, CachePart part, const CacheSlot* slots, const TensorView& rows,
                       CUstream_st* stream) {
  return CopyCache(rows, slots, cache, part, false, stream);
}

}  // namespace tessera::cuda
