#include "tests/virtual_gpu/cublas/gemm.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstring>
#include <vector>

namespace tessera::vgpu {
namespace {

template <typename T>
float LoadAs(const Matrix& matrix, int64_t at) {
  T value;
  std::memcpy(&value, static_cast<const char*>(matrix.address) + at * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return static_cast<float>(value);
}

float Load(const Matrix& matrix, int row, int column) {
  const int64_t at = row + column * matrix.pitch;
  switch (matrix.type) {
    case CUDA_R_16BF:
      return LoadAs<__nv_bfloat16>(matrix, at);
    case CUDA_R_16F:
      return LoadAs<__half>(matrix, at);
    default:
      return LoadAs<float>(matrix, at);
  }
}

template <typename T>
void StoreAs(const Matrix& matrix, int64_t at, float wide) {
  const T value = static_cast<T>(wide);
  std::memcpy(static_cast<char*>(matrix.address) + at * static_cast<int64_t>(sizeof(T)), &value, sizeof(T));
}

void Store(const Matrix& matrix, int row, int column, float value) {
  const int64_t at = row + column * matrix.pitch;
  switch (matrix.type) {
    case CUDA_R_16BF:
      return StoreAs<__nv_bfloat16>(matrix, at, value);
    case CUDA_R_16F:
      return StoreAs<__half>(matrix, at, value);
    default:
      return StoreAs<float>(matrix, at, value);
  }
}

// op(matrix) in fp32, column-major and dense.
std::vector<float> Unpack(const Matrix& matrix, bool transpose) {
  std::vector<float> values(static_cast<size_t>(matrix.rows) * matrix.columns);
  for (int column = 0; column < matrix.columns; ++column) {
    for (int row = 0; row < matrix.rows; ++row) {
      const size_t at = transpose ? column + static_cast<size_t>(row) * matrix.columns
                                  : row + static_cast<size_t>(column) * matrix.rows;
      values[at] = Load(matrix, row, column);
    }
  }
  return values;
}

}  // namespace

size_t BytesOf(cudaDataType type) {
  switch (type) {
    case CUDA_R_16BF:
    case CUDA_R_16F:
      return 2;
    case CUDA_R_32F:
      return 4;
    default:
      return 0;
  }
}

size_t Matrix::span_bytes() const {
  return rows == 0 || columns == 0 ? 0 : ((columns - 1) * static_cast<size_t>(pitch) + rows) * BytesOf(type);
}

void Multiply(const Matrix& a, bool transpose_a, const Matrix& b, bool transpose_b, const Matrix& c, float alpha,
              float beta) {
  const std::vector<float> left = Unpack(a, transpose_a), right = Unpack(b, transpose_b);
  const int depth = transpose_a ? a.rows : a.columns;
  std::vector<float> sum(c.rows);
  for (int column = 0; column < c.columns; ++column) {
    sum.assign(c.rows, 0.0f);
    for (int k = 0; k < depth; ++k) {
      const float factor = right[k + static_cast<size_t>(column) * depth];
      const float* const values = left.data() + static_cast<size_t>(k) * c.rows;
      for (int row = 0; row < c.rows; ++row) sum[row] += values[row] * factor;
    }
    for (int row = 0; row < c.rows; ++row) {
      Store(c, row, column, alpha * sum[row] + (beta == 0 ? 0.0f : beta * Load(c, row, column)));
    }
  }
}

}  // namespace tessera::vgpu
