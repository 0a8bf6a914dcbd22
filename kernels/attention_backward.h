// The backward pass of attention over rows that meet: gradients of query, key and value from the saved output and LSE.
//
// With P = exp(S - LSE) the final probabilities, dP = dO V^T and delta_q = sum_d dO_qd O_qd (Dao et al. 2022,
// section 3.2):
//   dV = P^T dO;   dS = P * (dP - delta);   dQ = scale * dS K;   dK = scale * dS^T Q,
// with dS multiplied by 1 - (s / soft_cap)^2 where a soft cap applies (s is the capped score before ALiBi). LSE and
// delta are those of the whole row (sink included), so contributions of different keys simply add: any split over
// tiles, calls or ranks gives the same sum.
#pragma once

#include <span>

#include "kernels/attention.h"

namespace tessera {

// All tensors are host views with unit width stride; any row and head stride is allowed. What is fp32 here is fp64
// when the tensors are.
struct AttendBackwardArgs {
  ConstTensorView query;            // [Sq rows, heads, D]       fp32, bf16, fp16 or fp64
  ConstTensorView key;              // [Sk rows, kv heads, D]    same dtype
  ConstTensorView value;            // [Sk rows, kv heads, Dv]   same dtype
  ConstTensorView output_gradient;  // [Sq rows, heads, Dv]      same dtype
  ConstTensorView lse;              // [Sq rows, heads, 1]       fp32, final; -inf rows contribute nothing
  ConstTensorView delta;            // [Sq rows, heads, 1]       fp32, see ComputeDelta
  TensorView query_gradient;        // [Sq rows, heads, D]       fp32, added to
  TensorView key_gradient;          // [Sk rows, kv heads, D]    fp32, added to
  TensorView value_gradient;        // [Sk rows, kv heads, Dv]   fp32, added to
  std::span<const Tile> tiles;      // as in AttendArgs; key rows of tiles may repeat too
  std::span<const Band> bands;
  int first_query_head = 0;  // as in AttendArgs
  int first_kv_head = 0;
  int group = 1;
  ScoreArgs score;
  int threads = 1;
  const std::atomic<bool>* cancelled = nullptr;  // as in AttendArgs
};

// delta[row, head] = sum_d output[row, head, d] * output_gradient[row, head, d], in the accumulator type. All views
// have equal rows and heads; output and output_gradient share a dtype.
void ComputeDelta(const ConstTensorView& output, const ConstTensorView& output_gradient, const TensorView& delta,
                  int threads);

// gradient[head] -= sum over rows of exp(sink[head] - lse[row, head]) * delta[row, head]: the sink is a key without a
// value. lse includes the sink. Summed in row order, fp64 inside; sinks and their gradients are fp32 whatever the
// tensors.
void AddSinkGradient(const ConstTensorView& lse, const ConstTensorView& delta, std::span<const float> sinks,
                     std::span<float> gradient);

}  // namespace tessera
