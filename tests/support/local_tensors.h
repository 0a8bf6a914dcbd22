// One rank's shards of whole tensors, inside poisoned memory; and how errors are measured.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "partition/plan.h"
#include "tests/support/problems.h"

namespace tessera::testing {

// A dense tensor inside a buffer of NaNs; 0xff bytes are NaN in every dtype.
class PoisonedTensor {
 public:
  PoisonedTensor(DType dtype, int64_t rows, int heads, int width)
      : buffer_(2 * kMargin + rows * heads * width * SizeInBytes(dtype), std::byte{0xff}),
        view_(TensorView::Dense(buffer_.data() + kMargin, dtype, rows, heads, width)) {}
  const TensorView& view() const { return view_; }
  void Set(int64_t row, const ConstTensorView& from, int64_t from_row) {
    for (int h = 0; h < from.heads; ++h)
      std::memcpy(view_.At(row, h), from.At(from_row, h), from.width * SizeInBytes(from.dtype));
  }
  bool MarginsIntact() const {
    const auto poison = [](std::byte b) { return b == std::byte{0xff}; };
    return std::all_of(buffer_.begin(), buffer_.begin() + kMargin, poison) &&
           std::all_of(buffer_.end() - kMargin, buffer_.end(), poison);
  }

 private:
  static constexpr int64_t kMargin = 256;
  std::vector<std::byte> buffer_;
  TensorView view_;
};

// Rows of `whole` that `rank` owns under `layout`, in local order.
inline void Gather(const ConstTensorView& whole, const Layout& layout, int rank, PoisonedTensor& local) {
  for (int64_t row = 0; row < layout.rows(rank); ++row) {
    local.Set(row, whole, static_cast<int64_t>(layout.ToGlobal(rank, LocalToken{row})));
  }
}

// The converse, widened.
inline void Scatter(const TensorView& local, const Layout& layout, int rank, std::vector<double>& whole) {
  const int64_t row_elements = int64_t{local.heads} * local.width;
  for (int64_t row = 0; row < local.rows; ++row) {
    const auto token = static_cast<int64_t>(layout.ToGlobal(rank, LocalToken{row}));
    for (int64_t i = 0; i < row_elements; ++i) {
      whole[token * row_elements + i] = LoadAsDouble(local.data, local.dtype, row * row_elements + i);
    }
  }
}

struct LocalInputs {
  LocalInputs(const PlanSpec& spec, int rank, const Tensors& tensors)
      : query(spec.problem.dtype, spec.query_layout.rows(rank), spec.problem.query_heads, spec.problem.qk_width),
        key(spec.problem.dtype, spec.key_layout.rows(rank), spec.problem.kv_heads, spec.problem.qk_width),
        value(spec.problem.dtype, spec.key_layout.rows(rank), spec.problem.kv_heads, spec.problem.v_width) {
    Gather(QueryView(spec.problem, tensors), spec.query_layout, rank, query);
    Gather(KeyView(spec.problem, tensors), spec.key_layout, rank, key);
    Gather(ValueView(spec.problem, tensors), spec.key_layout, rank, value);
  }
  PoisonedTensor query, key, value;
};

struct Error {
  double rms = 0;
  double max = 0;
};
inline Error ErrorOf(const std::vector<double>& values, const std::vector<double>& exact) {
  Error error;
  for (size_t i = 0; i < values.size(); ++i) {
    const double e = std::abs(values[i] - exact[i]);
    if (std::isnan(e)) return {e, e};
    error.rms += e * e;
    error.max = std::max(error.max, e);
  }
  error.rms = values.empty() ? 0 : std::sqrt(error.rms / static_cast<double>(values.size()));
  return error;
}

// One rounding to the dtype, relative; for fp32 and fp64 the roundings that any order of summation makes.
inline double RoundingOf(DType dtype) {
  if (dtype == DType::kFloat64) return 1e-12;
  return dtype == DType::kFloat32 ? 0x1p-22 : dtype == DType::kFloat16 ? 0x1p-11 : 0x1p-8;
}

// The type in which the CPU's kernels multiply weights with tensors of `dtype`. GPUs multiply in the tensors' own.
inline DType CpuWeightType(DType dtype) {
  return dtype == DType::kBFloat16 ? dtype : AccumulatorType(dtype);
}
inline float RoundWeight(DType weights, float weight) {
  if (SizeInBytes(weights) != 2) return weight;
  uint64_t storage = 0;
  StoreFromFloat(&storage, weights, 0, weight);
  return LoadAsFloat(&storage, weights, 0);
}

}  // namespace tessera::testing
