// Merging of partial results and their rounding to the final dtype.
#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "kernels/attention.h"

namespace tessera {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// log(exp(a) + exp(b)) without overflow; infinities of either sign give what the limit gives, never NaN.
float LogAddExp(float a, float b) {
  if (a < b) std::swap(a, b);
  if (b == kMinusInfinity || a == b + std::numeric_limits<float>::infinity()) return a;
  return a + std::log1p(std::exp(b - a));
}

// exp(part - total) where total = LogAddExp(part, ...); a total that is infinite belongs to the infinite parts alone.
float Weight(float part, float total) {
  if (part == kMinusInfinity) return 0.0f;
  return part == total ? 1.0f : std::exp(part - total);
}

}  // namespace

void MergePartials(const TensorView& output, const TensorView& lse, int64_t destination_row,
                   const ConstTensorView& other_output, const ConstTensorView& other_lse, int64_t source_row,
                   int64_t count) {
  for (int64_t row = 0; row < count; ++row) {
    for (int head = 0; head < output.heads; ++head) {
      float* const sum = static_cast<float*>(lse.At(destination_row + row, head));
      float* const out = static_cast<float*>(output.At(destination_row + row, head));
      const float other_sum = *static_cast<const float*>(other_lse.At(source_row + row, head));
      const float* const other = static_cast<const float*>(other_output.At(source_row + row, head));
      if (other_sum == kMinusInfinity) continue;
      if (*sum == kMinusInfinity) {
        for (int i = 0; i < output.width; ++i) out[i] = other[i];
        *sum = other_sum;
        continue;
      }
      // The larger side has weight 1 before normalisation, so that nothing overflows and equal infinities average.
      const bool other_larger = other_sum > *sum;
      const float gap = other_sum == *sum ? 0.0f : -std::abs(other_sum - *sum);
      const float minor = std::exp(gap);
      const float minor_share = minor / (1.0f + minor);
      const float other_share = other_larger ? 1.0f - minor_share : minor_share;
      if (other_share == 0.0f) continue;
      if (other_share == 1.0f) {
        for (int i = 0; i < output.width; ++i) out[i] = other[i];
      } else {
        for (int i = 0; i < output.width; ++i) out[i] += other_share * (other[i] - out[i]);
      }
      *sum = std::max(*sum, other_sum) + std::log1p(minor);
    }
  }
}

void FinishPartials(const ConstTensorView& output, const ConstTensorView& lse, std::span<const float> sinks,
                    const TensorView& result, const TensorView& result_lse, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t row = 0; row < output.rows; ++row) {
    for (int head = 0; head < output.heads; ++head) {
      const float keys = *static_cast<const float*>(lse.At(row, head));
      const float total = sinks.empty() ? keys : LogAddExp(keys, sinks[head]);
      const float share = Weight(keys, total);
      const float* const in = static_cast<const float*>(output.At(row, head));
      void* const out = result.At(row, head);
      for (int i = 0; i < output.width; ++i) {
        StoreFromFloat(out, result.dtype, i, share == 0.0f ? 0.0f : in[i] * share);
      }
      *static_cast<float*>(result_lse.At(row, head)) = total;
    }
  }
}

}  // namespace tessera
