// The fp64 oracle every other implementation is judged against. Slow, simple, whole problem on one device.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/attention.h"

namespace tessera::reference {

struct Rows {
  std::vector<double> output;  // [queries.size(), heads, Dv]
  std::vector<double> lse;     // [queries.size(), heads], natural log, sink included
};

// Attention of the listed query rows over all keys, in fp64 throughout. query [Sq, H, D], key [Sk, Hk, D],
// value [Sk, Hk, Dv] hold the whole sequences (row = global token); `sinks` is [H] or empty. Query head h reads
// key/value head h / (H / Hk).
StatusOr<Rows> Attention(const ConstTensorView& query, const ConstTensorView& key, const ConstTensorView& value,
                         std::span<const Band> bands, const ScoreArgs& score, std::span<const float> sinks,
                         std::span<const int64_t> query_rows);

struct Gradients {
  std::vector<double> query;  // [Sq, H, D]
  std::vector<double> key;    // [Sk, Hk, D]
  std::vector<double> value;  // [Sk, Hk, Dv]
  std::vector<double> sink;   // [H], empty without sinks
  std::vector<double> lse;    // [Sq, H], of the forward pass
};

// Gradients of sum(output * output_gradient) over the whole problem, in fp64 throughout: output, LSE and delta are its
// own and never rounded. output_gradient is [Sq, H, Dv]; everything else as for Attention.
StatusOr<Gradients> AttentionBackward(const ConstTensorView& query, const ConstTensorView& key,
                                      const ConstTensorView& value, const ConstTensorView& output_gradient,
                                      std::span<const Band> bands, const ScoreArgs& score,
                                      std::span<const float> sinks);

// The same arithmetic behind the kernel interface: fp64 inside one call, fp32 partials between calls.
const AttentionKernel* Kernel();

}  // namespace tessera::reference
