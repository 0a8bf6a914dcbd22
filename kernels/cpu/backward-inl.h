// One task of the backward pass: for every key block that meets the task's rows, recompute P and dS tile by tile and
// take the three products with them.
//
// Five products of 2 D flops per pair of query and key (S, dP, dQ, dV, dK), the least there is without storing P: what
// two passes (one that owns keys, one that owns queries) would need seven for. One pass suffices because the rounds
// keep apart tasks that share rows. Gradients are summed in the arena and added to the caller's tensors once per task
// (queries) or key block (keys).
#if defined(TESSERA_KERNELS_CPU_BACKWARD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TESSERA_KERNELS_CPU_BACKWARD_INL_H_
#undef TESSERA_KERNELS_CPU_BACKWARD_INL_H_
#else
#define TESSERA_KERNELS_CPU_BACKWARD_INL_H_
#endif

#include <hwy/highway.h>

#include <bit>

#include "kernels/cpu/backward.h"
#include "kernels/cpu/pack-inl.h"
#include "kernels/cpu/softmax-inl.h"
#include "kernels/cpu/tile-inl.h"

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
// beside it into P * (dP - delta) * factor.
HWY_INLINE void GradientRow(float* scores, float* gradient, int count, float scale, float lse, float delta,
                            float factor) {
  const FloatTag d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  const FloatVec scales = hn::Set(d, scale), total = hn::Set(d, lse), log2e = hn::Set(d, kLog2E);
  const FloatVec deltas = hn::Set(d, delta), factors = hn::Set(d, factor);
  for (int j = 0; j < count; j += lanes) {
    const FloatVec p = Exp2(hn::Mul(hn::MulSub(hn::Load(d, scores + j), scales, total), log2e));
    const FloatVec difference = hn::Sub(hn::Load(d, gradient + j), deltas);
    hn::Store(p, d, scores + j);
    hn::Store(hn::Mul(hn::Mul(p, difference), factors), d, gradient + j);
  }
}

HWY_INLINE void MultiplyRow(const float* factors, int count, float* row) {
  const FloatTag d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  for (int j = 0; j < count; j += lanes) {
    hn::Store(hn::Mul(hn::Load(d, row + j), hn::Load(d, factors + j)), d, row + j);
  }
}

HWY_INLINE void AddRow(const float* from, int width, void* to) {
  float* const out = static_cast<float*>(to);
  for (int i = 0; i < width; ++i) out[i] += from[i];
}

class BackwardRunner {
 public:
  BackwardRunner(const AttendBackwardArgs& args, const BackwardTask& task, RowMask& mask, float* arena)
      : args_(args),
        task_(task),
        mask_(mask),
        arena_(arena),
        rows_(static_cast<int>(task.rows.queries.count)),
        pairs_(rows_ * task.heads.size()),
        blocks_((pairs_ + kRowBlock - 1) / kRowBlock),
        layout_(blocks_, args.query.width, args.value.width) {
    modified_ = args.score.soft_cap > 0.0f || !args.score.alibi_slopes.empty();
  }

  void Run() {
    mask_.Reset(args_.bands, task_.rows.queries, task_.rows.keys);
    if (mask_.key_blocks().empty()) return;
    LoadRows();
    for (const Range& run : mask_.key_blocks()) {
      for (int64_t block = run.begin; block < run.end; ++block) {
        if (IsSet(args_.cancelled)) return;
        FoldKeyBlock(block * kKeyBlock);
      }
    }
    for (int pair = 0; pair < pairs_; ++pair) {
      AddRow(At(layout_.query_gradient, pair, layout_.qk_stride), args_.query.width,
             args_.query_gradient.At(RowOf(pair), HeadOf(pair)));
    }
  }

 private:
  int64_t RowOf(int pair) const { return task_.rows.query_row + pair % rows_; }
  int HeadOf(int pair) const { return task_.heads.begin + pair / rows_; }
  float* At(size_t array, int row, int stride) const { return arena_ + array + static_cast<size_t>(row) * stride; }

  // Pairs that fill up the last tile are zero and attend nothing.
  void LoadRows() {
    const FloatTag d;
    const int qk_stride = layout_.qk_stride, v_stride = layout_.v_stride;
    FloatVec poison = hn::Zero(d);
    for (int pair = 0; pair < blocks_ * kRowBlock; ++pair) {
      float* const query = At(layout_.query, pair, qk_stride);
      float* const gradient = At(layout_.output_gradient, pair, v_stride);
      std::memset(At(layout_.query_gradient, pair, qk_stride), 0, qk_stride * sizeof(float));
      if (pair >= pairs_) {
        std::memset(query, 0, qk_stride * sizeof(float));
        std::memset(gradient, 0, v_stride * sizeof(float));
        arena_[layout_.lse + pair] = -std::numeric_limits<float>::infinity();
        arena_[layout_.delta + pair] = 0.0f;
        continue;
      }
      const int64_t row = RowOf(pair);
      const int head = HeadOf(pair);
      poison =
          hn::Add(poison, PackRow(args_.query.At(row, head), args_.query.dtype, args_.query.width, qk_stride, query));
      poison = hn::Add(poison, PackRow(args_.output_gradient.At(row, head), args_.output_gradient.dtype,
                                       args_.value.width, v_stride, gradient));
      arena_[layout_.lse + pair] = *static_cast<const float*>(args_.lse.At(row, head));
      arena_[layout_.delta + pair] = *static_cast<const float*>(args_.delta.At(row, head));
    }
    queries_finite_ = hn::AllFalse(d, hn::IsNaN(poison));
  }

  void FoldKeyBlock(int64_t first_key) {
    const int count = static_cast<int>(std::min<int64_t>(kKeyBlock, task_.rows.keys.count - first_key));
    const int64_t row = task_.rows.key_row + first_key;
    float* const staging = arena_ + layout_.staging;
    PackKeys(args_.key, row, count, task_.kv_head, staging, arena_ + layout_.key_transposed);
    PackKeys(args_.value, row, count, task_.kv_head, staging, arena_ + layout_.value_transposed);
    keys_finite_ = PackValues(args_.key, row, count, task_.kv_head, layout_.qk_stride, arena_ + layout_.key);
    std::memset(arena_ + layout_.key_gradient, 0, size_t{kKeyBlock} * layout_.qk_stride * sizeof(float));
    std::memset(arena_ + layout_.value_gradient, 0, size_t{kKeyBlock} * layout_.v_stride * sizeof(float));
    for (int block = 0; block < blocks_; block += kTilesPerPass) {
      FoldPass(block, std::min(kTilesPerPass, blocks_ - block), first_key);
    }
    for (int j = 0; j < count; ++j) {
      AddRow(At(layout_.key_gradient, j, layout_.qk_stride), args_.key.width,
             args_.key_gradient.At(row + j, task_.kv_head));
      AddRow(At(layout_.value_gradient, j, layout_.v_stride), args_.value.width,
             args_.value_gradient.At(row + j, task_.kv_head));
    }
  }

  // Tiles [first, first + count) against the packed key block.
  void FoldPass(int first, int count, int64_t first_key) {
    uint64_t bits[kTilesPerPass * kRowBlock];
    Range active;  // tiles of the pass
    bool partial = false;
    for (int tile = 0; tile < count; ++tile) {
      uint64_t* const tile_bits = bits + tile * kRowBlock;
      uint64_t any = 0, all = ~uint64_t{0};
      for (int r = 0; r < kRowBlock; ++r) {
        const int pair = (first + tile) * kRowBlock + r;
        const bool empty = arena_[layout_.lse + pair] == -std::numeric_limits<float>::infinity();
        tile_bits[r] = empty ? 0 : mask_.BlockBits(pair % rows_, first_key);
        any |= tile_bits[r];
        all &= tile_bits[r];
      }
      partial |= all != ~uint64_t{0};
      if (any == 0) {
        std::memset(At(layout_.probability, tile * kRowBlock, kKeyBlock), 0, kRowBlock * kKeyBlock * sizeof(float));
        std::memset(At(layout_.score_gradient, tile * kRowBlock, kKeyBlock), 0, kRowBlock * kKeyBlock * sizeof(float));
        continue;
      }
      if (active.empty()) active.begin = tile;
      active.end = tile + 1;
      FoldTile(first + tile, tile, tile_bits, all != ~uint64_t{0}, 64 - std::countl_zero(any), first_key);
    }
    if (active.empty()) return;
    const int row = static_cast<int>(active.begin) * kRowBlock, depth = static_cast<int>(active.size()) * kRowBlock;
    const int pair = first * kRowBlock + row;
    AddToKeys(At(layout_.probability, row, kKeyBlock), bits + row, partial,
              At(layout_.output_gradient, pair, layout_.v_stride), layout_.v_stride, depth,
              arena_ + layout_.value_gradient);
    AddToKeys(At(layout_.score_gradient, row, kKeyBlock), bits + row, partial,
              At(layout_.query, pair, layout_.qk_stride), layout_.qk_stride, depth, arena_ + layout_.key_gradient);
  }

  // P and dS of one tile, and its share of dQ. Keys from `count` on are hidden from all its rows.
  void FoldTile(int block, int tile, const uint64_t* bits, bool partial, int count, int64_t first_key) {
    const int pair = block * kRowBlock;
    float* const scores = At(layout_.probability, tile * kRowBlock, kKeyBlock);
    float* const gradient = At(layout_.score_gradient, tile * kRowBlock, kKeyBlock);
    Scores(At(layout_.query, pair, layout_.qk_stride), 1, layout_.qk_stride, arena_ + layout_.key_transposed,
           args_.query.width, count, scores);
    Scores(At(layout_.output_gradient, pair, layout_.v_stride), 1, layout_.v_stride, arena_ + layout_.value_transposed,
           args_.value.width, count, gradient);
    for (int r = 0; r < kRowBlock; ++r) {
      float* const p = scores + r * kKeyBlock;
      float* const ds = gradient + r * kKeyBlock;
      if (bits[r] != 0) DifferentiateRow(pair + r, count, first_key, p, ds);
      if (partial) {
        ReplaceHidden(bits[r], kKeyBlock, 0.0f, p);
        ReplaceHidden(bits[r], kKeyBlock, 0.0f, ds);
      }
    }
    float* const query_gradient = At(layout_.query_gradient, pair, layout_.qk_stride);
    const float* const key = arena_ + layout_.key;
    if (HWY_LIKELY(keys_finite_ || !partial)) {
      AddValues(gradient, key, layout_.qk_stride, count, query_gradient);
    } else {
      for (int r = 0; r < kRowBlock; ++r) {
        AddSeenValues(gradient + r * kKeyBlock, bits[r], key, layout_.qk_stride, count,
                      query_gradient + r * layout_.qk_stride);
      }
    }
  }

  void DifferentiateRow(int pair, int count, int64_t first_key, float* scores, float* gradient) {
    const ScoreArgs& score = args_.score;
    const float lse = arena_[layout_.lse + pair], delta = arena_[layout_.delta + pair];
    if (HWY_LIKELY(!modified_)) {
      GradientRow(scores, gradient, count, score.scale, lse, delta, score.scale);
      return;
    }
    const Segment& keys = task_.rows.keys;
    float* const slope = arena_ + layout_.cap_slope;
    if (score.soft_cap > 0.0f) CapSlopes(scores, count, score.scale, score.soft_cap, slope);
    ModifyScores(
        scores, count, score.scale, score.soft_cap,
        score.alibi_slopes.empty() ? 0.0f : score.alibi_slopes[HeadOf(pair)],
        static_cast<float>(task_.rows.queries.token(pair % rows_) + score.position_offset - keys.token(first_key)),
        static_cast<float>(keys.stride));
    GradientRow(scores, gradient, count, 1.0f, lse, delta, score.scale);
    if (score.soft_cap > 0.0f) MultiplyRow(slope, count, gradient);
  }

  // output[j] += sum over `depth` pairs of left[pair][j] * right[pair], for every key j of the block.
  void AddToKeys(const float* left, const uint64_t* bits, bool partial, const float* right, int stride, int depth,
                 float* output) const {
    if (HWY_UNLIKELY(partial && !queries_finite_)) {
      for (int j = 0; j < kKeyBlock; ++j) {
        AddSeenProduct(
            left + j, kKeyBlock, [=](int i) HWY_ATTR { return (bits[i] >> j & 1) != 0; }, right, stride, depth,
            output + j * stride);
      }
      return;
    }
    constexpr int kRest = kKeyBlock % kRowBlock;
    for (int j = 0; j + kRowBlock <= kKeyBlock; j += kRowBlock) {
      AddProduct<kRowBlock>(left + j, kKeyBlock, 1, right, stride, depth, output + j * stride);
    }
    constexpr int kLast = kKeyBlock - kRest;
    AddProduct<kRest>(left + kLast, kKeyBlock, 1, right, stride, depth, output + kLast * stride);
  }

  const AttendBackwardArgs& args_;
  const BackwardTask& task_;
  RowMask& mask_;
  float* const arena_;
  const int rows_;    // query rows of the task
  const int pairs_;   // (row, head) pairs: pair p is row p % rows_ of head p / rows_
  const int blocks_;  // register tiles
  const BackwardLayout layout_;
  bool modified_;  // scores need more than a scale
  bool queries_finite_ = true;
  bool keys_finite_ = true;
};

void RunBackwardTask(const AttendBackwardArgs& args, const BackwardTask& task, RowMask& mask, float* arena) {
  BackwardRunner(args, task, mask, arena).Run();
}

}  // namespace tessera::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
