// Merging of partial results and their rounding to the final dtype.
#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "kernels/attention.h"

namespace tessera {
namespace {

template <typename Real>
constexpr Real kMinusInfinity = -std::numeric_limits<Real>::infinity();

// log(exp(a) + exp(b)) without overflow; infinities of either sign give what the limit gives, never NaN.
template <typename Real>
Real LogAddExp(Real a, Real b) {
  if (a < b) std::swap(a, b);
  if (b == kMinusInfinity<Real> || a == b + std::numeric_limits<Real>::infinity()) return a;
  return a + std::log1p(std::exp(b - a));
}

// exp(part - total) where total = LogAddExp(part, ...); a total that is infinite belongs to the infinite parts alone.
template <typename Real>
Real Weight(Real part, Real total) {
  if (part == kMinusInfinity<Real>) return 0;
  return part == total ? Real{1} : std::exp(part - total);
}

void Store(void* data, DType dtype, int64_t index, float value) {
  StoreFromFloat(data, dtype, index, value);
}
void Store(void* data, DType dtype, int64_t index, double value) {
  StoreFromDouble(data, dtype, index, value);
}

template <typename Real>
void Merge(const TensorView& output, const TensorView& lse, int64_t destination_row,
           const ConstTensorView& other_output, const ConstTensorView& other_lse, int64_t source_row, int64_t count) {
  for (int64_t row = 0; row < count; ++row) {
    for (int head = 0; head < output.heads; ++head) {
      Real* const sum = static_cast<Real*>(lse.At(destination_row + row, head));
      Real* const out = static_cast<Real*>(output.At(destination_row + row, head));
      const Real other_sum = *static_cast<const Real*>(other_lse.At(source_row + row, head));
      const Real* const other = static_cast<const Real*>(other_output.At(source_row + row, head));
      if (other_sum == kMinusInfinity<Real>) continue;
      if (*sum == kMinusInfinity<Real>) {
        for (int i = 0; i < output.width; ++i) out[i] = other[i];
        *sum = other_sum;
        continue;
      }
      // The larger side has weight 1 before normalisation, so that nothing overflows and equal infinities average.
      const bool other_larger = other_sum > *sum;
      const Real gap = other_sum == *sum ? Real{0} : -std::abs(other_sum - *sum);
      const Real minor = std::exp(gap);
      const Real minor_share = minor / (1 + minor);
      const Real other_share = other_larger ? 1 - minor_share : minor_share;
      if (other_share == 0) continue;
      if (other_share == 1) {
        for (int i = 0; i < output.width; ++i) out[i] = other[i];
      } else {
        for (int i = 0; i < output.width; ++i) out[i] += other_share * (other[i] - out[i]);
      }
      *sum = std::max(*sum, other_sum) + std::log1p(minor);
    }
  }
}

template <typename Real>
void Finish(const ConstTensorView& output, const ConstTensorView& lse, std::span<const float> sinks,
            const TensorView& result, const TensorView& result_lse, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t row = 0; row < output.rows; ++row) {
    for (int head = 0; head < output.heads; ++head) {
      const Real keys = *static_cast<const Real*>(lse.At(row, head));
      const Real total = sinks.empty() ? keys : LogAddExp(keys, static_cast<Real>(sinks[head]));
      const Real share = Weight(keys, total);
      const Real* const in = static_cast<const Real*>(output.At(row, head));
      void* const out = result.At(row, head);
      for (int i = 0; i < output.width; ++i) {
        Store(out, result.dtype, i, share == 0 ? Real{0} : in[i] * share);
      }
      *static_cast<Real*>(result_lse.At(row, head)) = total;
    }
  }
}

}  // namespace

void MergePartials(const TensorView& output, const TensorView& lse, int64_t destination_row,
                   const ConstTensorView& other_output, const ConstTensorView& other_lse, int64_t source_row,
                   int64_t count) {
  const auto merge = output.dtype == DType::kFloat64 ? Merge<double> : Merge<float>;
  merge(output, lse, destination_row, other_output, other_lse, source_row, count);
}

void FinishPartials(const ConstTensorView& output, const ConstTensorView& lse, std::span<const float> sinks,
                    const TensorView& result, const TensorView& result_lse, int threads) {
  const auto finish = output.dtype == DType::kFloat64 ? Finish<double> : Finish<float>;
  finish(output, lse, sinks, result, result_lse, threads);
}

}  // namespace tessera
