// The attention kernel interface: accumulate softmax attention of query rows over key/value rows into a partial (O,
// LSE).
//
// A partial result is a monoid element: O is the normalised output over the keys seen so far and LSE their natural
// log-sum-exp, both in the accumulator type (fp32; fp64 for fp64 tensors); the identity is O = 0, LSE = -inf. Every
// implementation folds new keys into the partial it is given, so ring steps need no separate merge.
#pragma once

#include <atomic>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/dtype.h"
#include "runtime/base/geometry.h"
#include "runtime/base/status.h"
#include "runtime/base/tensor.h"

namespace tessera {

// How a raw dot product becomes a score: s = scale * (q . k); if soft_cap > 0, s = soft_cap * tanh(s / soft_cap);
// if slopes are given, s -= slope[h] * |q_pos + position_offset - k_pos| (ALiBi, Press et al. 2022).
struct ScoreArgs {
  float scale = 1.0f;
  float soft_cap = 0.0f;                // 0 = off
  std::span<const float> alibi_slopes;  // [query heads of this call], host, empty = off
  int64_t position_offset = 0;          // key_tokens - query_tokens: aligns the last query with the last key
};

// One kernel call. All tensors are host views with unit width stride; any row and head stride is allowed.
struct AttendArgs {
  ConstTensorView query;  // [Sq rows, heads, D]   fp32, bf16, fp16 or fp64
  ConstTensorView key;    // [Sk rows, kv heads, D]  same dtype as query
  ConstTensorView value;  // [Sk rows, kv heads, Dv] same dtype as query
  TensorView output;  // [Sq rows, heads, Dv]  partial O in the accumulator type, read and written; rows outside tiles
                      // are not touched
  TensorView lse;     // [Sq rows, heads, 1]   partial LSE (natural log), likewise
  std::span<const Tile> tiles;  // which rows meet, with their global tokens; query rows of tiles may repeat
  std::span<const Band> bands;  // the mask, in global tokens, pairwise disjoint
  // Query head h of this call reads key/value head (first_query_head + h) / group - first_kv_head of the views.
  int first_query_head = 0;
  int first_kv_head = 0;
  int group = 1;  // query heads per key/value head in the whole problem
  ScoreArgs score;
  int threads = 1;  // OpenMP threads this call may use
  // When this turns true the call ends soon with CANCELLED and outputs are undefined; may be null.
  const std::atomic<bool>* cancelled = nullptr;
};

struct AttendBackwardArgs;  // kernels/attention_backward.h

inline bool IsSet(const std::atomic<bool>* flag) {
  return flag != nullptr && flag->load(std::memory_order_relaxed);
}

// What an implementation is asked about before it is chosen.
struct AttentionTraits {
  DType dtype = DType::kFloat32;
  int qk_width = 0;
  int v_width = 0;
};

// One way to compute attention, able to say why it cannot. Instances are static and immutable.
class AttentionKernel {
 public:
  virtual ~AttentionKernel() = default;
  virtual std::string_view name() const = 0;  // e.g. "reference", "cpu-avx512"
  // Empty when this machine and these traits can be served, otherwise the reason.
  virtual std::string WhyNot(const AttentionTraits& traits) const = 0;
  // Not collective, synchronous, thread-safe. InvalidArgument when views disagree in shape or dtype.
  virtual Status Attend(const AttendArgs& args) const = 0;
  // Adds the gradients of the tiles' rows, on the same terms. The bits do not depend on the number of threads.
  virtual Status AttendBackward(const AttendBackwardArgs& args) const = 0;
};

// All implementations compiled in, fastest first; the fp64 reference is last.
std::span<const AttentionKernel* const> AttentionKernels();

// The first implementation that serves `traits`, or the one called `name` when it is not empty and not "auto". On
// failure the error lists every implementation considered and its reason.
StatusOr<const AttentionKernel*> FindAttentionKernel(const AttentionTraits& traits, std::string_view name = {});

// (O, LSE) += (O2, LSE2), row by row: out rows [destination_row, +count) of heads [0, heads). All fp32 or all fp64,
// host. Exact identity handling: LSE = -inf on either side leaves the other unchanged; never produces NaN from
// infinities.
void MergePartials(const TensorView& output, const TensorView& lse, int64_t destination_row,
                   const ConstTensorView& other_output, const ConstTensorView& other_lse, int64_t source_row,
                   int64_t count);

// Rounds partials to the result: result = O * exp(LSE - LSE') in the result's dtype, result_lse = LSE' where
// LSE' = log(exp(LSE) + exp(sink[h])); `sinks` is [heads] on the host or empty. A row that saw no key gives O = 0 and
// LSE = -inf (or the sink). `result` may alias nothing. Row counts and heads of all views agree.
void FinishPartials(const ConstTensorView& output, const ConstTensorView& lse, std::span<const float> sinks,
                    const TensorView& result, const TensorView& result_lse, int threads);

}  // namespace tessera
