#include "kernels/cuda/linear.h"

#include <cublas_v2.h>

#include <limits>

namespace tessera::cuda {
namespace {

absl::StatusCode CodeFor(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_ALLOC_FAILED:
      return absl::StatusCode::kResourceExhausted;
    case CUBLAS_STATUS_NOT_INITIALIZED:  // of a driver or a context that is not there
      return absl::StatusCode::kFailedPrecondition;
    case CUBLAS_STATUS_INVALID_VALUE:
      return absl::StatusCode::kInvalidArgument;
    case CUBLAS_STATUS_ARCH_MISMATCH:
    case CUBLAS_STATUS_NOT_SUPPORTED:
      return absl::StatusCode::kUnimplemented;
    default:
      return absl::StatusCode::kInternal;
  }
}

Status CheckCublas(cublasStatus_t status, std::string_view call, const std::string& what) {
  if (status == CUBLAS_STATUS_SUCCESS) return absl::OkStatus();
  return Status(CodeFor(status), absl::StrCat(std::string(call), what, ": ", cublasGetStatusString(status),
                                              " (cublasStatus_t ", static_cast<int>(status), ")"));
}

StatusOr<cudaDataType> TypeOf(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return CUDA_R_32F;
    case DType::kBFloat16:
      return CUDA_R_16BF;
    case DType::kFloat16:
      return CUDA_R_16F;
    case DType::kFloat64:
      break;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("cuda linear: the dtype is ", std::string(Name(dtype)), "; it must be fp32, bf16 or fp16"));
}

std::string Describe(const LinearMap& map, int64_t rows) {
  return absl::StrCat(" of ", rows, " rows, ", map.batch, " maps from ", map.in, " to ", map.out, " in ",
                      std::string(Name(map.dtype)));
}

// cuBLAS counts in int.
Status CheckRows(std::string_view name, const ConstTensorView& view) {
  constexpr int64_t kMost = std::numeric_limits<int>::max();
  if (view.elements() == 0 || (view.rows <= kMost && view.row_stride <= kMost && view.row_stride >= view.width)) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat("cuda linear: ", std::string(name), " has ", view.rows,
                                                 " rows, a row every ", view.row_stride, " elements; rows are at most ",
                                                 kMost, ", and ", view.width, " to ", kMost, " elements apart"));
}

Status CheckView(std::string_view name, const ConstTensorView& view, const LinearMap& map, int width, DType dtype) {
  if (view.heads == map.batch && view.width == width && view.dtype == dtype) return CheckRows(name, view);
  return absl::InvalidArgumentError(absl::StrCat("cuda linear: ", std::string(name), " is [", view.rows, ", ",
                                                 view.heads, ", ", view.width, "] ", std::string(Name(view.dtype)),
                                                 "; the map needs [rows, ", map.batch, ", ", width, "] ",
                                                 std::string(Name(dtype))));
}

}  // namespace

void Cublas::Destroy::operator()(cublasContext* handle) const {
  (void)cublasDestroy(handle);
}

StatusOr<Cublas> Cublas::Create(std::byte* workspace, int64_t workspace_bytes) {
  Cublas made;
  cublasHandle_t handle = nullptr;
  TESSERA_RETURN_IF_ERROR(CheckCublas(cublasCreate(&handle), "cublasCreate", ""));
  made.handle_.reset(handle);
  made.workspace_ = workspace;
  made.workspace_bytes_ = workspace_bytes;
  return made;
}

Status Cublas::UseStream(CUstream_st* stream) {
  if (stream_set_ && stream == stream_) return absl::OkStatus();
  stream_set_ = false;
  TESSERA_RETURN_IF_ERROR(CheckCublas(cublasSetStream(handle_.get(), stream), "cublasSetStream", ""));
  // After every change of stream: it brings back the library's own workspace, of which graphs would need one each.
  TESSERA_RETURN_IF_ERROR(
      CheckCublas(cublasSetWorkspace(handle_.get(), workspace_, static_cast<size_t>(workspace_bytes_)),
                  "cublasSetWorkspace", absl::StrCat(" of ", workspace_bytes_, " bytes")));
  stream_ = stream;
  stream_set_ = true;
  return absl::OkStatus();
}

Status Cublas::Apply(const LinearMap& map, const ConstTensorView& x, float scale, const TensorView& y,
                     CUstream_st* stream) {
  TESSERA_ASSIGN_OR_RETURN(const cudaDataType type, TypeOf(map.dtype));
  TESSERA_RETURN_IF_ERROR(CheckView("x", x, map, map.in, map.dtype));
  TESSERA_RETURN_IF_ERROR(CheckView("y", y, map, map.out, DType::kFloat32));
  if (x.rows != y.rows) {
    return absl::InvalidArgumentError(absl::StrCat("cuda linear: x has ", x.rows, " rows, y has ", y.rows));
  }
  if (x.rows == 0 || map.batch == 0 || map.out == 0) return absl::OkStatus();
  TESSERA_RETURN_IF_ERROR(UseStream(stream));
  // cuBLAS is column-major: x and y are there [in, rows] and [out, rows], the weights [in, out], or [out, in] when they
  // are transposed here.
  const cublasOperation_t op = map.transposed ? CUBLAS_OP_N : CUBLAS_OP_T;
  const int rows = static_cast<int>(x.rows), pitch = map.transposed ? map.out : map.in;
  const int x_pitch = static_cast<int>(x.row_stride), y_pitch = static_cast<int>(y.row_stride);
  const float beta = 0.0f;
  if (map.batch == 1) {
    return CheckCublas(
        cublasGemmEx(handle_.get(), op, CUBLAS_OP_N, map.out, rows, map.in, &scale, map.weights, type, pitch, x.data,
                     type, x_pitch, &beta, y.data, CUDA_R_32F, y_pitch, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
        "cublasGemmEx", Describe(map, x.rows));
  }
  return CheckCublas(cublasGemmStridedBatchedEx(handle_.get(), op, CUBLAS_OP_N, map.out, rows, map.in, &scale,
                                                map.weights, type, pitch, int64_t{map.in} * map.out, x.data, type,
                                                x_pitch, x.head_stride, &beta, y.data, CUDA_R_32F, y_pitch,
                                                y.head_stride, map.batch, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
                     "cublasGemmStridedBatchedEx", Describe(map, x.rows));
}

Status Cublas::AddMoments(const ConstTensorView& x, const void* ones, float* second, float* first,
                          CUstream_st* stream) {
  TESSERA_ASSIGN_OR_RETURN(const cudaDataType type, TypeOf(x.dtype));
  if (x.heads != 1) {
    return absl::InvalidArgumentError(absl::StrCat("cuda linear: x has ", x.heads, " heads; moments are of rows of 1"));
  }
  TESSERA_RETURN_IF_ERROR(CheckRows("x", x));
  if (x.elements() == 0) return absl::OkStatus();
  TESSERA_RETURN_IF_ERROR(UseStream(stream));
  // To the column-major cuBLAS x is [width, rows].
  const int rows = static_cast<int>(x.rows), width = x.width, pitch = static_cast<int>(x.row_stride);
  const float one = 1.0f;
  const std::string what =
      absl::StrCat(" of the moments of ", x.rows, " rows of ", width, " in ", std::string(Name(x.dtype)));
  TESSERA_RETURN_IF_ERROR(CheckCublas(
      cublasGemmEx(handle_.get(), CUBLAS_OP_N, CUBLAS_OP_T, width, width, rows, &one, x.data, type, pitch, x.data, type,
                   pitch, &one, second, CUDA_R_32F, width, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
      "cublasGemmEx", what));
  return CheckCublas(
      cublasGemmEx(handle_.get(), CUBLAS_OP_N, CUBLAS_OP_N, width, 1, rows, &one, x.data, type, pitch, ones, type, rows,
                   &one, first, CUDA_R_32F, width, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
      "cublasGemmEx", what);
}

}  // namespace tessera::cuda
