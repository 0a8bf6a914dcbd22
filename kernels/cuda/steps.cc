#include "kernels/cuda/steps.h"

#include <limits>

#include "kernels/cuda/device/steps.h"
#include "kernels/cuda/element_type.h"
#include "kernels/cuda/error.h"

namespace tessera::cuda {
namespace {

Status CheckFloat(DType dtype, std::string_view what) {
  if (dtype == DType::kFloat32) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("cuda ", std::string(what), ": accumulators are ", std::string(Name(dtype)), "; they must be fp32"));
}

template <typename Element>
Matrix<Element> From(const TensorView& view, int64_t row = 0) {
  return {static_cast<Element*>(row == 0 ? view.data : view.At(row, 0)), view.row_stride, view.head_stride};
}
template <typename Element>
Matrix<const Element> From(const ConstTensorView& view, int64_t row = 0) {
  return {static_cast<const Element*>(row == 0 ? view.data : view.At(row, 0)), view.row_stride, view.head_stride};
}

RowShape ShapeOf(const ConstTensorView& view, int64_t rows) {
  return {rows, view.heads, view.width};
}

float* FloatsAt(const TensorView& view, int64_t row, int head) {
  return static_cast<float*>(view.At(row, head));
}

}  // namespace

Status ClearPartials(const TensorView& output, const TensorView& lse, Range rows, CUstream_st* stream) {
  TESSERA_RETURN_IF_ERROR(CheckFloat(output.dtype, "clear"));
  TESSERA_RETURN_IF_ERROR(ZeroRows(output, rows, stream));
  if (rows.empty()) return absl::OkStatus();
  return CheckLaunch(LaunchFill(FloatsAt(lse, rows.begin, 0), -std::numeric_limits<float>::infinity(),
                                rows.size() * lse.heads, stream),
                     "clear");
}

Status MergePartials(const TensorView& output, const TensorView& lse, int64_t destination_row,
                     const ConstTensorView& other_output, const ConstTensorView& other_lse, int64_t source_row,
                     int64_t count, CUstream_st* stream) {
  for (DType dtype : {output.dtype, lse.dtype, other_output.dtype, other_lse.dtype}) {
    TESSERA_RETURN_IF_ERROR(CheckFloat(dtype, "merge"));
  }
  return CheckLaunch(
      LaunchMerge({From<float>(output, destination_row), From<float>(lse, destination_row),
                   From<float>(other_output, source_row), From<float>(other_lse, source_row), ShapeOf(output, count)},
                  stream),
      "merge");
}

Status FinishPartials(const ConstTensorView& output, const ConstTensorView& lse, const float* sinks,
                      const TensorView& result, const TensorView& result_lse, CUstream_st* stream) {
  TESSERA_RETURN_IF_ERROR(CheckFloat(output.dtype, "finish"));
  TESSERA_ASSIGN_OR_RETURN(const ElementType type, ElementTypeOf(result.dtype, "finish"));
  return CheckLaunch(LaunchFinish({From<float>(output), From<float>(lse), sinks, From<void>(result), type,
                                   From<float>(result_lse), ShapeOf(output, output.rows)},
                                  stream),
                     "finish");
}

Status ComputeDelta(const ConstTensorView& output, const ConstTensorView& output_gradient, const TensorView& delta,
                    CUstream_st* stream) {
  TESSERA_RETURN_IF_ERROR(CheckFloat(delta.dtype, "delta"));
  TESSERA_ASSIGN_OR_RETURN(const ElementType type, ElementTypeOf(output.dtype, "delta"));
  return CheckLaunch(LaunchDelta({From<void>(output), From<void>(output_gradient), type, From<float>(delta),
                                  ShapeOf(output, output.rows)},
                                 stream),
                     "delta");
}

Status AddSinkGradient(const ConstTensorView& lse, const ConstTensorView& delta, const float* sinks, float* gradient,
                       CUstream_st* stream) {
  TESSERA_RETURN_IF_ERROR(CheckFloat(lse.dtype, "sink gradient"));
  return CheckLaunch(
      LaunchSinkGradient({From<float>(lse), From<float>(delta), sinks, gradient, ShapeOf(lse, lse.rows)}, stream),
      "sink gradient");
}

Status ZeroRows(const TensorView& view, Range rows, CUstream_st* stream) {
  if (rows.empty()) return absl::OkStatus();
  const int64_t row_bytes = view.row_stride * static_cast<int64_t>(SizeInBytes(view.dtype));
  return CheckLaunch(LaunchZero(view.At(rows.begin, 0), rows.size() * row_bytes, stream), "zero");
}

Status AddRows(const ConstTensorView& source, int64_t source_row, const TensorView& destination,
               int64_t destination_row, int first_head, int64_t count, CUstream_st* stream) {
  TESSERA_RETURN_IF_ERROR(CheckFloat(source.dtype, "add"));
  TESSERA_RETURN_IF_ERROR(CheckFloat(destination.dtype, "add"));
  if (count == 0) return absl::OkStatus();
  return CheckLaunch(LaunchAdd({FloatsAt(destination, destination_row, first_head),
                                static_cast<const float*>(source.At(source_row, 0)), destination.row_stride,
                                source.row_stride, ShapeOf(source, count)},
                               stream),
                     "add");
}

Status RoundRows(const ConstTensorView& source, const TensorView& destination, CUstream_st* stream) {
  TESSERA_RETURN_IF_ERROR(CheckFloat(source.dtype, "round"));
  TESSERA_ASSIGN_OR_RETURN(const ElementType type, ElementTypeOf(destination.dtype, "round"));
  return CheckLaunch(
      LaunchRound(destination.data, type, static_cast<const float*>(source.data), source.elements(), stream), "round");
}

Status CopyRows(std::byte* destination, int64_t destination_pitch, const std::byte* source, int64_t source_pitch,
                int64_t row_bytes, int64_t rows, CUstream_st* stream) {
  return CheckLaunch(LaunchCopyRows({destination, source, destination_pitch, source_pitch, row_bytes, rows}, stream),
                     "copy rows");
}

}  // namespace tessera::cuda
