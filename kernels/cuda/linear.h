// Dense maps on a CUDA device by cuBLAS: the only place that includes its header is kernels/cuda/linear.cc.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "runtime/base/status.h"
#include "runtime/base/tensor.h"

struct CUstream_st;
struct cublasContext;

namespace tessera::cuda {

// A batch of linear maps as Linear (kernels/linear.h), not owned: y[r, b, :] = W[b] x[r, b, :].
struct LinearMap {
  const void* weights = nullptr;  // [batch, out, in], or [batch, in, out] when transposed; dense, device memory
  DType dtype = DType::kBFloat16;
  int batch = 1;
  int in = 0;
  int out = 0;
  bool transposed = false;
};

// A cuBLAS handle of the GPU that was current when it was made. Not thread-safe. cuBLAS works in the caller's memory
// and nowhere else, so calls allocate nothing, may be captured and repeat bitwise; calls on different streams share
// that memory and must be ordered by the caller.
class Cublas {
 public:
  // What NVIDIA recommends for a GPU of this compute capability (cuBLAS documentation, cublasSetWorkspace): with less,
  // cuBLAS has fewer algorithms to choose from.
  static constexpr int64_t WorkspaceBytes(int capability_major) {
    return (capability_major >= 9 ? int64_t{32} : int64_t{4}) << 20;
  }
  // `workspace`: [workspace_bytes] device memory, 256-byte aligned; it outlives the handle.
  static StatusOr<Cublas> Create(std::byte* workspace, int64_t workspace_bytes);

  // y = scale W x, with sums in fp32. x [rows, batch, in] of the map's dtype and y [rows, batch, out] fp32, device
  // memory with unit width stride; rows and batch entries may lie apart, so that a part of wider rows is read or
  // written in place. Any number of rows, zero too. Asynchronous on `stream`. InvalidArgument names shapes or dtypes
  // that do not fit; an error of cuBLAS names the call, the shape and cuBLAS's own words.
  Status Apply(const LinearMap& map, const ConstTensorView& x, float scale, const TensorView& y, CUstream_st* stream);

  // second += x^T x and first += ones x, the moments of rows, with sums in fp32. x [rows, 1, width] fp32, bf16 or fp16
  // with unit width stride, any number of rows; `ones` [rows] of x's dtype, all 1; second [width, width] and first
  // [width] fp32, dense. All device memory. Asynchronous and errors as Apply.
  Status AddMoments(const ConstTensorView& x, const void* ones, float* second, float* first, CUstream_st* stream);

 private:
  struct Destroy {
    void operator()(cublasContext* handle) const;
  };
  Status UseStream(CUstream_st* stream);

  std::unique_ptr<cublasContext, Destroy> handle_;
  std::byte* workspace_ = nullptr;
  int64_t workspace_bytes_ = 0;
  CUstream_st* stream_ = nullptr;
  bool stream_set_ = false;
};

}  // namespace tessera::cuda
