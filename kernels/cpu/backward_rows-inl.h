// The rows of one task of the backward pass, whatever multiplies: where they lie, what they meet, how scores that need
// more than a scale are differentiated.
#if defined(TESSERA_KERNELS_CPU_BACKWARD_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TESSERA_KERNELS_CPU_BACKWARD_ROWS_INL_H_
#undef TESSERA_KERNELS_CPU_BACKWARD_ROWS_INL_H_
#else
#define TESSERA_KERNELS_CPU_BACKWARD_ROWS_INL_H_
#endif

#include <hwy/highway.h>

#include <limits>

#include "kernels/cpu/backward.h"
#include "kernels/cpu/softmax-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tessera::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// slope[j] = 1 - tanh(scale * dots[j] / cap)^2 = 4 u / (1 + u)^2 with u = exp(-2 |x|), which does not cancel where the
// cap saturates.
HWY_INLINE void CapSlopes(const float* dots, int count, float scale, float soft_cap, float* slope) {
  const FloatTag d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  const FloatVec factor = hn::Set(d, -2.0f * kLog2E);
  for (int j = 0; j < count; j += lanes) {
    const FloatVec x = hn::Div(hn::Mul(hn::Load(d, dots + j), hn::Set(d, scale)), hn::Set(d, soft_cap));
    const FloatVec u = Exp2(hn::Mul(hn::Abs(x), factor));
    const FloatVec v = hn::Add(u, hn::Set(d, 1.0f));
    hn::Store(hn::Div(hn::Mul(hn::Set(d, 4.0f), u), hn::Mul(v, v)), d, slope + j);
  }
}

// Turns one row of scores, given before multiplication by `scale`, into P = exp(scale * score - lse) and the row of dP
// beside it into P * (dP - delta).
HWY_INLINE void GradientRow(float* scores, float* gradient, int count, float scale, float lse, float delta) {
  const FloatTag d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  const FloatVec scales = hn::Set(d, scale), total = hn::Set(d, lse), log2e = hn::Set(d, kLog2E);
  const FloatVec deltas = hn::Set(d, delta);
  for (int j = 0; j < count; j += lanes) {
    const FloatVec p = Exp2(hn::Mul(hn::MulSub(hn::Load(d, scores + j), scales, total), log2e));
    const FloatVec difference = hn::Sub(hn::Load(d, gradient + j), deltas);
    hn::Store(p, d, scores + j);
    hn::Store(hn::Mul(p, difference), d, gradient + j);
  }
}

HWY_INLINE void MultiplyRow(const float* factors, int count, float* row) {
  const FloatTag d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  for (int j = 0; j < count; j += lanes) {
    hn::Store(hn::Mul(hn::Load(d, row + j), hn::Load(d, factors + j)), d, row + j);
  }
}

HWY_INLINE void AddRow(const float* from, int width, float factor, void* to) {
  float* const out = static_cast<float*>(to);
  for (int i = 0; i < width; ++i) out[i] += factor * from[i];
}

// What some pairs meet in a key block.
struct MetKeys {
  uint64_t any = 0;             // keys that some pair attends
  uint64_t all = ~uint64_t{0};  // keys that all do
};

class BackwardRows {
 public:
  // `lse` and `delta` are of the pairs, those that fill up the last tile included.
  BackwardRows(const AttendBackwardArgs& args, const BackwardTask& task, RowMask& mask, float* lse, float* delta)
      : args_(args),
        task_(task),
        mask_(mask),
        rows_(static_cast<int>(task.rows.queries.count)),
        pairs_(rows_ * task.heads.size()),
        lse_(lse),
        delta_(delta),
        modified_(args.score.soft_cap > 0.0f || !args.score.alibi_slopes.empty()) {}

  int rows() const { return rows_; }           // query rows of the task
  int pairs() const { return pairs_; }         // (row, head) pairs: pair p is row p % rows of head p / rows
  bool modified() const { return modified_; }  // scores need more than a scale
  int64_t RowOf(int pair) const { return task_.rows.query_row + pair % rows_; }
  int HeadOf(int pair) const { return task_.heads.begin + pair / rows_; }
  // Null for the pairs that fill up the last tile.
  const void* Query(int pair) const { return pair < pairs_ ? args_.query.At(RowOf(pair), HeadOf(pair)) : nullptr; }
  const void* OutputGradient(int pair) const {
    return pair < pairs_ ? args_.output_gradient.At(RowOf(pair), HeadOf(pair)) : nullptr;
  }

  // LSE and delta of `count` pairs; those beyond the last attend nothing.
  void Load(int count) {
    for (int pair = 0; pair < count; ++pair) {
      const bool real = pair < pairs_;
      lse_[pair] = real ? *static_cast<const float*>(args_.lse.At(RowOf(pair), HeadOf(pair)))
                        : -std::numeric_limits<float>::infinity();
      delta_[pair] = real ? *static_cast<const float*>(args_.delta.At(RowOf(pair), HeadOf(pair))) : 0.0f;
    }
  }

  // bits[r]: which of the kKeyBlock keys from `first_key` on pair first_pair + r attends, for `count` of them.
  MetKeys Meet(int first_pair, int count, int64_t first_key, uint64_t* bits) const {
    MetKeys met;
    for (int r = 0; r < count; ++r) {
      const bool empty = lse_[first_pair + r] == -std::numeric_limits<float>::infinity();
      bits[r] = empty ? 0 : mask_.BlockBits((first_pair + r) % rows_, first_key);
      met.any |= bits[r];
      met.all &= bits[r];
    }
    return met;
  }

  // Turns one pair's row of raw dot products and the row of dP beside it into P and dS / scale. `slope` is scratch; all
  // rows are kKeyBlock floats.
  void Differentiate(int pair, int64_t first_key, int count, float* scores, float* gradient, float* slope) const {
    const ScoreArgs& score = args_.score;
    const Segment& keys = task_.rows.keys;
    if (score.soft_cap > 0.0f) CapSlopes(scores, count, score.scale, score.soft_cap, slope);
    ModifyScores(
        scores, count, score.scale, score.soft_cap,
        score.alibi_slopes.empty() ? 0.0f : score.alibi_slopes[HeadOf(pair)],
        static_cast<float>(task_.rows.queries.token(pair % rows_) + score.position_offset - keys.token(first_key)),
        static_cast<float>(keys.stride));
    GradientRow(scores, gradient, count, 1.0f, lse_[pair], delta_[pair]);
    if (score.soft_cap > 0.0f) MultiplyRow(slope, count, gradient);
  }

  // Adds to the caller's tensors. `row` counts from the first key of the task.
  void AddToQuery(int pair, const float* gradient) const {
    AddRow(gradient, args_.query.width, args_.score.scale, args_.query_gradient.At(RowOf(pair), HeadOf(pair)));
  }
  void AddToKey(int64_t row, const float* key_gradient, const float* value_gradient) const {
    const int64_t at = task_.rows.key_row + row;
    AddRow(key_gradient, args_.key.width, args_.score.scale, args_.key_gradient.At(at, task_.kv_head));
    AddRow(value_gradient, args_.value.width, 1.0f, args_.value_gradient.At(at, task_.kv_head));
  }

 private:
  const AttendBackwardArgs& args_;
  const BackwardTask& task_;
  RowMask& mask_;
  const int rows_;
  const int pairs_;
  float* const lse_;
  float* const delta_;
  const bool modified_;
};

}  // namespace tessera::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
