// The entry points of cuBLAS that Tessera may call. Products happen in stream order.
#include <cublas_v2.h>

#include <algorithm>
#include <cstdio>
#include <new>

#include "tests/virtual_gpu/cublas/gemm.h"
#include "tests/virtual_gpu/cudart/vgpu.h"

using namespace tessera::vgpu;

// A handle takes device memory for a workspace of its own, as the real one does.
struct cublasContext {
  cudaStream_t stream = nullptr;
  void* memory = nullptr;
  const void* workspace = nullptr;  // the caller's; null: its own
  size_t workspace_bytes = 0;
};

namespace {

constexpr size_t kHandleBytes = size_t{4} << 20;

cublasStatus_t Refuse(cublasStatus_t status, const char* why) {
  std::fprintf(stderr, "vgpu: cublasGemmEx: %s\n", why);
  return status;
}

struct Product {
  Matrix a, b, c;
  bool transpose_a, transpose_b;
  float alpha, beta;
  int64_t stride_a, stride_b, stride_c;  // elements between matrices of a batch
  int batch;
  const void* workspace = nullptr;  // it must be there when the product is computed
  size_t workspace_bytes = 0;
};

Matrix Nth(const Matrix& matrix, int64_t stride, int i) {
  Matrix nth = matrix;
  nth.address = static_cast<char*>(matrix.address) + i * stride * static_cast<int64_t>(BytesOf(matrix.type));
  return nth;
}

void Run(const Product& p) {
  if (!vgpuAccess(p.workspace, p.workspace_bytes, "cublasGemmEx's workspace")) return;
  for (int i = 0; i < p.batch; ++i) {
    const Matrix a = Nth(p.a, p.stride_a, i), b = Nth(p.b, p.stride_b, i), c = Nth(p.c, p.stride_c, i);
    for (const Matrix* matrix : {&a, &b, &c}) {
      if (!vgpuAccess(matrix->address, matrix->span_bytes(), "cublasGemmEx")) return;
    }
    Multiply(a, p.transpose_a, b, p.transpose_b, c, p.alpha, p.beta);
  }
}

cublasStatus_t Submit(cublasHandle_t handle, Product p, cublasComputeType_t compute) {
  if (handle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  p.workspace = handle->workspace;
  p.workspace_bytes = handle->workspace_bytes;
  if (compute != CUBLAS_COMPUTE_32F && compute != CUBLAS_COMPUTE_32F_PEDANTIC) {
    return Refuse(CUBLAS_STATUS_NOT_SUPPORTED, "only CUBLAS_COMPUTE_32F is modelled");
  }
  if (BytesOf(p.a.type) == 0 || p.a.type != p.b.type || (p.c.type != p.a.type && p.c.type != CUDA_R_32F)) {
    return Refuse(CUBLAS_STATUS_NOT_SUPPORTED, "these types are not modelled");
  }
  if (p.batch < 0) return Refuse(CUBLAS_STATUS_INVALID_VALUE, "a negative batch count");
  for (const Matrix* matrix : {&p.a, &p.b, &p.c}) {
    if (matrix->rows < 0 || matrix->columns < 0 || matrix->pitch < std::max(1, matrix->rows)) {
      return Refuse(CUBLAS_STATUS_INVALID_VALUE, "a negative extent, or a leading dimension below the rows");
    }
    if (p.batch > 0 && !vgpuWhyNoDeviceMemory(matrix->address, matrix->span_bytes()).empty()) {
      return Refuse(CUBLAS_STATUS_INVALID_VALUE, vgpuWhyNoDeviceMemory(matrix->address, matrix->span_bytes()).c_str());
    }
  }
  bool captured = false;
  const cudaError_t error = vgpuSubmit(
      handle->stream, "cublasGemmEx", [p] { Run(p); }, &captured);
  return error == cudaSuccess ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_EXECUTION_FAILED;
}

// A factor is one fp32 number of the host, read when the product is submitted.
float Factor(const void* factor) {
  return *static_cast<const float*>(factor);
}

Matrix Input(const void* address, cudaDataType type, bool transpose, int rows, int columns, int pitch) {
  return {const_cast<void*>(address), type, transpose ? columns : rows, transpose ? rows : columns, pitch};
}

}  // namespace

extern "C" {

cublasStatus_t cublasCreate_v2(cublasHandle_t* handle) {
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return CUBLAS_STATUS_NOT_INITIALIZED;
  void* memory = nullptr;
  if (cudaMalloc(&memory, kHandleBytes) != cudaSuccess) {
    (void)cudaGetLastError();
    return CUBLAS_STATUS_ALLOC_FAILED;
  }
  *handle = new (std::nothrow) cublasContext;
  if (*handle == nullptr) return CUBLAS_STATUS_ALLOC_FAILED;
  (*handle)->memory = memory;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasDestroy_v2(cublasHandle_t handle) {
  if (handle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  (void)cudaFree(handle->memory);
  delete handle;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetStream_v2(cublasHandle_t handle, cudaStream_t stream) {
  if (handle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  handle->stream = stream;
  handle->workspace = nullptr;
  handle->workspace_bytes = 0;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasGetStream_v2(cublasHandle_t handle, cudaStream_t* stream) {
  if (handle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  *stream = handle->stream;
  return CUBLAS_STATUS_SUCCESS;
}

// Lasts until the next cublasSetStream.
cublasStatus_t cublasSetWorkspace_v2(cublasHandle_t handle, void* workspace, size_t bytes) {
  if (handle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  if (reinterpret_cast<uintptr_t>(workspace) % 256 != 0) {
    return Refuse(CUBLAS_STATUS_INVALID_VALUE, "the workspace is not 256-byte aligned");
  }
  if (!vgpuWhyNoDeviceMemory(workspace, bytes).empty()) {
    return Refuse(CUBLAS_STATUS_INVALID_VALUE, vgpuWhyNoDeviceMemory(workspace, bytes).c_str());
  }
  handle->workspace = workspace;
  handle->workspace_bytes = bytes;
  return CUBLAS_STATUS_SUCCESS;
}

// Modes choose speed or precision of tensor cores; sums here are fp32 in all of them.
cublasStatus_t cublasSetMathMode(cublasHandle_t handle, cublasMath_t) {
  return handle == nullptr ? CUBLAS_STATUS_NOT_INITIALIZED : CUBLAS_STATUS_SUCCESS;
}

const char* cublasGetStatusString(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_SUCCESS:
      return "the operation completed successfully";
    case CUBLAS_STATUS_NOT_INITIALIZED:
      return "the library was not initialized";
    case CUBLAS_STATUS_ALLOC_FAILED:
      return "the resource allocation failed";
    case CUBLAS_STATUS_INVALID_VALUE:
      return "an unsupported value or parameter was passed to the function";
    case CUBLAS_STATUS_EXECUTION_FAILED:
      return "the GPU program failed to execute";
    case CUBLAS_STATUS_NOT_SUPPORTED:
      return "the requested functionality is not supported";
    default:
      return "unknown cuBLAS status";
  }
}

cublasStatus_t cublasGemmStridedBatchedEx(cublasHandle_t handle, cublasOperation_t op_a, cublasOperation_t op_b, int m,
                                          int n, int k, const void* alpha, const void* a, cudaDataType a_type, int lda,
                                          long long stride_a, const void* b, cudaDataType b_type, int ldb,
                                          long long stride_b, const void* beta, void* c, cudaDataType c_type, int ldc,
                                          long long stride_c, int batch, cublasComputeType_t compute,
                                          cublasGemmAlgo_t) {
  const bool transpose_a = op_a != CUBLAS_OP_N, transpose_b = op_b != CUBLAS_OP_N;
  return Submit(handle,
                {Input(a, a_type, transpose_a, m, k, lda),
                 Input(b, b_type, transpose_b, k, n, ldb),
                 {c, c_type, m, n, ldc},
                 transpose_a,
                 transpose_b,
                 Factor(alpha),
                 Factor(beta),
                 stride_a,
                 stride_b,
                 stride_c,
                 batch},
                compute);
}

cublasStatus_t cublasGemmEx(cublasHandle_t handle, cublasOperation_t op_a, cublasOperation_t op_b, int m, int n, int k,
                            const void* alpha, const void* a, cudaDataType a_type, int lda, const void* b,
                            cudaDataType b_type, int ldb, const void* beta, void* c, cudaDataType c_type, int ldc,
                            cublasComputeType_t compute, cublasGemmAlgo_t algorithm) {
  return cublasGemmStridedBatchedEx(handle, op_a, op_b, m, n, k, alpha, a, a_type, lda, 0, b, b_type, ldb, 0, beta, c,
                                    c_type, ldc, 0, 1, compute, algorithm);
}

}  // extern "C"
