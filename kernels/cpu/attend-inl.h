// One task of the blocked online-softmax forward: for every key block that meets the task's rows, pack it once and fold
// it into every register tile of rows.
//
// Scratch, per thread: queries, outputs and sums of the task, one packed key and value block, and one tile of scores.
// About 340 KiB at head widths 64 and 128, 540 KiB at 256, 1.1 MiB at 576/512. Nothing grows with the sequence but the
// list of bands and key ranges that meet the task's rows.
#if defined(TESSERA_KERNELS_CPU_ATTEND_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TESSERA_KERNELS_CPU_ATTEND_INL_H_
#undef TESSERA_KERNELS_CPU_ATTEND_INL_H_
#else
#define TESSERA_KERNELS_CPU_ATTEND_INL_H_
#endif

#include <hwy/highway.h>

#include <bit>

#include "kernels/cpu/pack-inl.h"
#include "kernels/cpu/softmax-inl.h"
#include "kernels/cpu/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tessera::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

class TaskRunner {
 public:
  TaskRunner(const AttendArgs& args, const Task& task, RowMask& mask, float* arena)
      : args_(args),
        task_(task),
        mask_(mask),
        arena_(arena),
        rows_(static_cast<int>(task.rows.size())),
        pairs_(rows_ * task.heads.size()),
        blocks_((pairs_ + kRowBlock - 1) / kRowBlock),
        layout_(blocks_, args.query.width, args.value.width) {
    const ScoreArgs& score = args.score;
    modified_ = score.soft_cap > 0.0f || !score.alibi_slopes.empty();
    // Dot products are kept unscaled, so that the scale enters through one fused multiply-add. The running maximum
    // needs it to be positive: queries take its sign, and a zero.
    query_factor_ = score.scale < 0.0f ? -1.0f : score.scale == 0.0f ? 0.0f : 1.0f;
    scale_ = score.scale == 0.0f ? 1.0f : std::abs(score.scale);
  }

  void Run() {
    LoadRows();
    const Segment queries = tessera::Rows(task_.group->queries, task_.rows);
    for (const KeyRows& keys : task_.group->keys) {
      mask_.Reset(args_.bands, queries, keys.keys);
      for (const Range& run : mask_.key_blocks()) {
        for (int64_t block = run.begin; block < run.end; ++block) {
          if (IsSet(args_.cancelled)) return;
          FoldKeyBlock(keys, block * kKeyBlock);
        }
      }
    }
    StoreRows();
  }

 private:
  int64_t RowOf(int pair) const { return task_.group->first_row + task_.rows.begin + pair % rows_; }
  int HeadOf(int pair) const { return task_.heads.begin + pair / rows_; }
  float* Output(int pair) const { return arena_ + layout_.output + static_cast<size_t>(pair) * layout_.v_stride; }
  float* Sum(int pair) const { return arena_ + layout_.sum + static_cast<size_t>(pair) * ArenaLayout::kMaxLanes; }
  float* Max(int pair) const { return arena_ + layout_.max + pair; }
  float* Seen(int pair) const { return arena_ + layout_.seen + pair; }
  float* QueryBlock(int block) const {
    return arena_ + layout_.query + static_cast<size_t>(block) * kRowBlock * args_.query.width;
  }

  // Queries by register tile, and the partial (O, LSE) as accumulators: reference score LSE, denominator 1, output
  // O. Pairs that fill up the last tile attend with zeros and are not stored.
  void LoadRows() {
    const int qk_width = args_.query.width, v_width = args_.value.width;
    float* const staging = arena_ + layout_.staging;
    for (int pair = 0; pair < blocks_ * kRowBlock; ++pair) {
      const bool real = pair < pairs_;
      float* const query = QueryBlock(pair / kRowBlock) + pair % kRowBlock;
      if (real) ToFloats(args_.query.At(RowOf(pair), HeadOf(pair)), args_.query.dtype, qk_width, staging);
      for (int i = 0; i < qk_width; ++i) query[i * kRowBlock] = real ? query_factor_ * staging[i] : 0.0f;
      const float lse = real ? *static_cast<const float*>(args_.lse.At(RowOf(pair), HeadOf(pair)))
                             : -std::numeric_limits<float>::infinity();
      const bool empty = lse == -std::numeric_limits<float>::infinity();
      std::memset(Output(pair), 0, layout_.v_stride * sizeof(float));
      std::memset(Sum(pair), 0, ArenaLayout::kMaxLanes * sizeof(float));
      *Seen(pair) = 0.0f;
      *Max(pair) = empty ? kNoMax : lse;
      if (empty) continue;
      Sum(pair)[0] = 1.0f;
      ToFloats(args_.output.At(RowOf(pair), HeadOf(pair)), DType::kFloat32, v_width, Output(pair));
    }
  }

  // Rows that saw no key keep their partial bit for bit.
  void StoreRows() const {
    const FloatTag d;
    for (int pair = 0; pair < pairs_; ++pair) {
      if (*Seen(pair) == 0.0f) continue;
      const float sum = hn::GetLane(hn::SumOfLanes(d, hn::Load(d, Sum(pair))));
      float* const output = static_cast<float*>(args_.output.At(RowOf(pair), HeadOf(pair)));
      const float* const unnormalised = Output(pair);
      for (int i = 0; i < args_.value.width; ++i) output[i] = sum == 0.0f ? 0.0f : unnormalised[i] / sum;
      *static_cast<float*>(args_.lse.At(RowOf(pair), HeadOf(pair))) =
          sum == 0.0f ? -std::numeric_limits<float>::infinity() : *Max(pair) + std::log(sum);
    }
  }

  void FoldKeyBlock(const KeyRows& keys, int64_t first_key) {
    const int count = static_cast<int>(std::min<int64_t>(kKeyBlock, keys.keys.count - first_key));
    const int64_t row = keys.first_row + first_key;
    PackKeys(args_.key, row, count, task_.kv_head, arena_ + layout_.staging, arena_ + layout_.key);
    const bool finite = PackValues(args_.value, row, count, task_.kv_head, layout_.v_stride, arena_ + layout_.value);
    int row_index = 0;
    for (int block = 0; block < blocks_; ++block) {
      uint64_t bits[kRowBlock];
      uint64_t any = 0, all = ~uint64_t{0};
      for (int r = 0; r < kRowBlock; ++r) {
        bits[r] = 0;
        if (block * kRowBlock + r >= pairs_) continue;
        bits[r] = mask_.BlockBits(row_index, first_key);
        any |= bits[r];
        all &= bits[r];
        if (++row_index == rows_) row_index = 0;
      }
      if (any != 0) FoldTile(block, bits, all != ~uint64_t{0}, 64 - std::countl_zero(any), finite, keys, first_key);
    }
  }

  // Folds the first `count` keys of the packed block into one tile of rows.
  void FoldTile(int block, const uint64_t bits[kRowBlock], bool partial, int count, bool finite, const KeyRows& keys,
                int64_t first_key) {
    const int qk_width = args_.query.width, v_stride = layout_.v_stride;
    const int first_pair = block * kRowBlock;
    float* const scores = arena_ + layout_.score;
    const float* const value = arena_ + layout_.value;
    Scores(QueryBlock(block), kRowBlock, 1, arena_ + layout_.key, qk_width, count, scores);
    if (modified_) ModifyTile(first_pair, count, keys.keys, first_key);
    const float scale = modified_ ? 1.0f : scale_;
    for (int r = 0; r < kRowBlock; ++r) {
      float* const row = scores + r * kKeyBlock;
      const int pair = first_pair + r;
      if (bits[r] != 0) *Seen(pair) = 1.0f;
      if (partial) MaskScores(bits[r], count, row);
      SoftmaxRow(row, count, scale, v_stride, Max(pair), Sum(pair), Output(pair));
    }
    if (HWY_LIKELY(finite || !partial)) {
      AddValues(scores, value, v_stride, count, Output(first_pair));
    } else {
      for (int r = 0; r < kRowBlock; ++r) {
        AddSeenValues(scores + r * kKeyBlock, bits[r], value, v_stride, count, Output(first_pair + r));
      }
    }
  }

  void ModifyTile(int first_pair, int count, const Segment& keys, int64_t first_key) {
    const ScoreArgs& score = args_.score;
    for (int r = 0; r < kRowBlock && first_pair + r < pairs_; ++r) {
      const int pair = first_pair + r;
      const int64_t query_token = task_.group->queries.token(task_.rows.begin + pair % rows_);
      ModifyScores(arena_ + layout_.score + r * kKeyBlock, count, scale_, score.soft_cap,
                   score.alibi_slopes.empty() ? 0.0f : score.alibi_slopes[HeadOf(pair)],
                   static_cast<float>(query_token + score.position_offset - keys.token(first_key)),
                   static_cast<float>(keys.stride));
    }
  }

  const AttendArgs& args_;
  const Task& task_;
  RowMask& mask_;
  float* const arena_;
  const int rows_;    // query rows of the task
  const int pairs_;   // (row, head) pairs: pair p is row p % rows_ of head p / rows_
  const int blocks_;  // register tiles
  const ArenaLayout layout_;
  bool modified_;       // scores need more than a scale
  float query_factor_;  // -1, 0 or 1
  float scale_;         // positive
};

void RunTask(const AttendArgs& args, const Task& task, RowMask& mask, float* arena) {
  TaskRunner(args, task, mask, arena).Run();
}

}  // namespace tessera::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
