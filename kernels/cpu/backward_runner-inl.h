// One task of the backward pass, whatever multiplies: for every key block that meets the task's rows, recompute P and
// dS tile by tile and take the three products with them.
//
// Five products of 2 D flops per pair of query and key (S, dP, dQ, dV, dK), the least there is without storing P: what
// two passes (one that owns keys, one that owns queries) would need seven for. One pass suffices because the rounds
// keep apart tasks that share rows. Gradients are summed in the arena and added to the caller's tensors once per task
// (queries) or key block (keys).
#if defined(TESSERA_KERNELS_CPU_BACKWARD_RUNNER_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TESSERA_KERNELS_CPU_BACKWARD_RUNNER_INL_H_
#undef TESSERA_KERNELS_CPU_BACKWARD_RUNNER_INL_H_
#else
#define TESSERA_KERNELS_CPU_BACKWARD_RUNNER_INL_H_
#endif

#include <hwy/highway.h>

#include <bit>

#include "kernels/cpu/backward.h"
#include "kernels/cpu/softmax-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tessera::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// A thread's working arrays.
struct BackwardArena {
  BackwardLayout layout;
  float* data;

  float* At(size_t array, int row, int stride) const { return data + array + static_cast<size_t>(row) * stride; }
  float* QueryGradient(int pair) const { return At(layout.query_gradient, pair, layout.qk_stride); }
  float* KeyGradient(int key) const { return At(layout.key_gradient, key, layout.qk_stride); }
  float* ValueGradient(int key) const { return At(layout.value_gradient, key, layout.v_stride); }
};

// A register tile of a pass against the packed block.
struct BackwardTile {
  int first_pair = 0;
  int tile = 0;                    // of the pass
  const uint64_t* bits = nullptr;  // [kRowBlock]; row r attends key j when bit j of bits[r] is set
  bool partial = false;            // a bit is clear
  int count = 0;                   // keys from here on are hidden from all rows
};

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

// `Arithmetic` says how the operands are packed and multiplied:
//   Arithmetic(const AttendBackwardArgs& args, const BackwardArena& arena);
//   bool LoadPair(int pair, const void* query, const void* output_gradient);  // null: zeros; false: not all finite
//   void LoadBlock(int64_t row, int count, int kv_head);                      // packs keys and values
//   float* Scores(int tile), * Gradients(int tile);  // [kRowBlock][kKeyBlock] of a tile in hand
//   void Multiply(const BackwardTile& tile);         // S and dP, before any scale
//   void Differentiate(const BackwardTile& tile);    // S and dP to P and dS / scale, where scores need only the scale
//   void AddToQueries(const BackwardTile& tile);     // dQ / scale; keeps P and dS for the keys
//   void Skip(int tile);                             // its P and dS are zero
//   // dV and dK / scale of the pass's rows [row, row + depth), of which the first is `first_pair`. `bits` is null
//   unless
//   // a hidden row is not finite.
//   void AddToKeys(int first_pair, int row, int depth, const uint64_t* bits);
template <class Arithmetic>
class BackwardRunner {
 public:
  BackwardRunner(const AttendBackwardArgs& args, const BackwardTask& task, RowMask& mask, float* arena)
      : args_(args),
        task_(task),
        mask_(mask),
        rows_(static_cast<int>(task.rows.queries.count)),
        pairs_(rows_ * task.heads.size()),
        blocks_((pairs_ + kRowBlock - 1) / kRowBlock),
        arena_{BackwardLayout(blocks_, args.query.width, args.value.width), arena},
        arithmetic_(args, arena_),
        modified_(args.score.soft_cap > 0.0f || !args.score.alibi_slopes.empty()) {}

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
      AddRow(arena_.QueryGradient(pair), args_.query.width, args_.score.scale,
             args_.query_gradient.At(RowOf(pair), HeadOf(pair)));
    }
  }

 private:
  int64_t RowOf(int pair) const { return task_.rows.query_row + pair % rows_; }
  int HeadOf(int pair) const { return task_.heads.begin + pair / rows_; }
  float& Lse(int pair) const { return arena_.data[arena_.layout.lse + pair]; }
  float& Delta(int pair) const { return arena_.data[arena_.layout.delta + pair]; }

  // Pairs that fill up the last tile are zero and attend nothing.
  void LoadRows() {
    for (int pair = 0; pair < blocks_ * kRowBlock; ++pair) {
      std::memset(arena_.QueryGradient(pair), 0, arena_.layout.qk_stride * sizeof(float));
      if (pair >= pairs_) {
        arithmetic_.LoadPair(pair, nullptr, nullptr);
        Lse(pair) = -std::numeric_limits<float>::infinity();
        Delta(pair) = 0.0f;
        continue;
      }
      const int64_t row = RowOf(pair);
      const int head = HeadOf(pair);
      queries_finite_ &= arithmetic_.LoadPair(pair, args_.query.At(row, head), args_.output_gradient.At(row, head));
      Lse(pair) = *static_cast<const float*>(args_.lse.At(row, head));
      Delta(pair) = *static_cast<const float*>(args_.delta.At(row, head));
    }
  }

  void FoldKeyBlock(int64_t first_key) {
    const int count = static_cast<int>(std::min<int64_t>(kKeyBlock, task_.rows.keys.count - first_key));
    const int64_t row = task_.rows.key_row + first_key;
    arithmetic_.LoadBlock(row, count, task_.kv_head);
    std::memset(arena_.KeyGradient(0), 0, size_t{kKeyBlock} * arena_.layout.qk_stride * sizeof(float));
    std::memset(arena_.ValueGradient(0), 0, size_t{kKeyBlock} * arena_.layout.v_stride * sizeof(float));
    for (int block = 0; block < blocks_; block += kTilesPerPass) {
      FoldPass(block, std::min(kTilesPerPass, blocks_ - block), first_key);
    }
    for (int j = 0; j < count; ++j) {
      AddRow(arena_.KeyGradient(j), args_.key.width, args_.score.scale, args_.key_gradient.At(row + j, task_.kv_head));
      AddRow(arena_.ValueGradient(j), args_.value.width, 1.0f, args_.value_gradient.At(row + j, task_.kv_head));
    }
  }

  // Tiles [first, first + count) against the packed key block.
  void FoldPass(int first, int count, int64_t first_key) {
    uint64_t bits[kTilesPerPass * kRowBlock];
    Range active;  // tiles of the pass
    bool partial = false;
    for (int tile = 0; tile < count; ++tile) {
      uint64_t* const tile_bits = bits + tile * kRowBlock;
      const int first_pair = (first + tile) * kRowBlock;
      uint64_t any = 0, all = ~uint64_t{0};
      for (int r = 0; r < kRowBlock; ++r) {
        const bool empty = Lse(first_pair + r) == -std::numeric_limits<float>::infinity();
        tile_bits[r] = empty ? 0 : mask_.BlockBits((first_pair + r) % rows_, first_key);
        any |= tile_bits[r];
        all &= tile_bits[r];
      }
      partial |= all != ~uint64_t{0};
      if (any == 0) {
        arithmetic_.Skip(tile);
        continue;
      }
      if (active.empty()) active.begin = tile;
      active.end = tile + 1;
      FoldTile({first_pair, tile, tile_bits, all != ~uint64_t{0}, 64 - std::countl_zero(any)}, first_key);
    }
    if (active.empty()) return;
    const int row = static_cast<int>(active.begin) * kRowBlock, depth = static_cast<int>(active.size()) * kRowBlock;
    arithmetic_.AddToKeys(first * kRowBlock + row, row, depth, partial && !queries_finite_ ? bits + row : nullptr);
  }

  void FoldTile(const BackwardTile& tile, int64_t first_key) {
    arithmetic_.Multiply(tile);
    if (HWY_LIKELY(!modified_)) {
      arithmetic_.Differentiate(tile);
    } else {
      for (int r = 0; r < kRowBlock; ++r) {
        if (tile.bits[r] != 0) DifferentiateModified(tile, r, first_key);
      }
    }
    if (tile.partial) {
      for (int r = 0; r < kRowBlock; ++r) {
        ReplaceHidden(tile.bits[r], kKeyBlock, 0.0f, arithmetic_.Scores(tile.tile) + r * kKeyBlock);
        ReplaceHidden(tile.bits[r], kKeyBlock, 0.0f, arithmetic_.Gradients(tile.tile) + r * kKeyBlock);
      }
    }
    arithmetic_.AddToQueries(tile);
  }

  void DifferentiateModified(const BackwardTile& tile, int r, int64_t first_key) {
    const ScoreArgs& score = args_.score;
    const int pair = tile.first_pair + r, count = tile.count;
    float* const scores = arithmetic_.Scores(tile.tile) + r * kKeyBlock;
    float* const gradient = arithmetic_.Gradients(tile.tile) + r * kKeyBlock;
    const Segment& keys = task_.rows.keys;
    float* const slope = arena_.data + arena_.layout.cap_slope;
    if (score.soft_cap > 0.0f) CapSlopes(scores, count, score.scale, score.soft_cap, slope);
    ModifyScores(
        scores, count, score.scale, score.soft_cap,
        score.alibi_slopes.empty() ? 0.0f : score.alibi_slopes[HeadOf(pair)],
        static_cast<float>(task_.rows.queries.token(pair % rows_) + score.position_offset - keys.token(first_key)),
        static_cast<float>(keys.stride));
    GradientRow(scores, gradient, count, 1.0f, Lse(pair), Delta(pair));
    if (score.soft_cap > 0.0f) MultiplyRow(slope, count, gradient);
  }

  const AttendBackwardArgs& args_;
  const BackwardTask& task_;
  RowMask& mask_;
  const int rows_;    // query rows of the task
  const int pairs_;   // (row, head) pairs: pair p is row p % rows_ of head p / rows_
  const int blocks_;  // register tiles
  const BackwardArena arena_;
  Arithmetic arithmetic_;
  const bool modified_;  // scores need more than a scale
  bool queries_finite_ = true;
};

}  // namespace tessera::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
