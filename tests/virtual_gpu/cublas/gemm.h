// General matrix products on the host, as cuBLAS defines them.
#pragma once

#include <cublas_v2.h>

#include <cstddef>
#include <cstdint>

namespace tessera::vgpu {

// A column-major matrix of device memory: element (row, column) at address[row + column * pitch].
struct Matrix {
  void* address = nullptr;
  cudaDataType type = CUDA_R_32F;
  int rows = 0, columns = 0;
  int64_t pitch = 0;

  size_t span_bytes() const;  // from the first element to the end of the last
};

size_t BytesOf(cudaDataType type);  // 0 for a type that is not modelled

// c = alpha * op(a) * op(b) + beta * c; sums in fp32, one rounding to c's type. `c` is not read when beta is 0.
void Multiply(const Matrix& a, bool transpose_a, const Matrix& b, bool transpose_b, const Matrix& c, float alpha,
              float beta);

}  // namespace tessera::vgpu
