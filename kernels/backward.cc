// What the backward pass needs around the kernels: delta before them, the sink's gradient beside them.
#include <cmath>
#include <limits>

#include "kernels/attention_backward.h"

namespace tessera {

void ComputeDelta(const ConstTensorView& output, const ConstTensorView& output_gradient, const TensorView& delta,
                  int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t row = 0; row < output.rows; ++row) {
    for (int head = 0; head < output.heads; ++head) {
      const void* const o = output.At(row, head);
      const void* const gradient = output_gradient.At(row, head);
      // fp64 costs nothing beside the kernels, and delta is subtracted from sums that it nearly equals.
      double sum = 0;
      for (int i = 0; i < output.width; ++i) {
        sum += LoadAsDouble(o, output.dtype, i) * LoadAsDouble(gradient, output_gradient.dtype, i);
      }
      StoreFromDouble(delta.At(row, head), delta.dtype, 0, sum);
    }
  }
}

void AddSinkGradient(const ConstTensorView& lse, const ConstTensorView& delta, std::span<const float> sinks,
                     std::span<float> gradient) {
  constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();
  for (size_t head = 0; head < sinks.size(); ++head) {
    if (static_cast<double>(sinks[head]) == kMinusInfinity) continue;
    double sum = 0;
    for (int64_t row = 0; row < lse.rows; ++row) {
      const double total = LoadAsDouble(lse.At(row, static_cast<int>(head)), lse.dtype, 0);
      if (total == kMinusInfinity) continue;
      sum += std::exp(static_cast<double>(sinks[head]) - total) *
             LoadAsDouble(delta.At(row, static_cast<int>(head)), delta.dtype, 0);
    }
    gradient[head] = static_cast<float>(static_cast<double>(gradient[head]) - sum);
  }
}

}  // namespace tessera
