// One task of the blocked online-softmax forward, whatever multiplies: for every key block that meets the task's rows,
// pack it once and fold it into every register tile of rows.
//
// Scratch, per thread: queries, outputs and sums of the task, one packed key and value block, and one tile of scores.
// About 340 KiB at head widths 64 and 128, 540 KiB at 256, 1.1 MiB at 576/512. Nothing grows with the sequence but the
// list of bands and key ranges that meet the task's rows.
#if defined(TESSERA_KERNELS_CPU_RUNNER_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TESSERA_KERNELS_CPU_RUNNER_INL_H_
#undef TESSERA_KERNELS_CPU_RUNNER_INL_H_
#else
#define TESSERA_KERNELS_CPU_RUNNER_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <bit>
#include <vector>

#include "kernels/cpu/softmax-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tessera::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// A thread's working arrays.
struct Arena {
  ArenaLayout layout;
  float* data;

  float* Output(int pair) const { return data + layout.output + static_cast<size_t>(pair) * layout.v_stride; }
  float* Sum(int pair) const { return data + layout.sum + static_cast<size_t>(pair) * ArenaLayout::kMaxLanes; }
  float* Max(int pair) const { return data + layout.max + pair; }
  float* Seen(int pair) const { return data + layout.seen + pair; }
  float* Scores() const { return data + layout.score; }
};

// What one tile of rows meets in the packed block: its row r attends key j when bit j of bits[r] is set.
template <int kRows>
struct TileBlock {
  int first_pair = 0;
  uint64_t bits[kRows];
  bool partial = false;  // some bit is clear
  int begin = 0;         // keys outside [begin, end) are hidden from all rows
  int end = 0;
};

// `Arithmetic` says how queries, keys and values are packed and multiplied:
//   static constexpr int kRows;  // of a tile
//   Arithmetic(const AttendArgs& args, const Arena& arena);
//   void LoadQuery(int pair, const void* row, float factor);  // factor is -1, 0 or 1; null is a row of zeros
//   void LoadBlock(int64_t row, int count, int kv_head);      // packs keys and values [row, row + count)
//   // Folds the packed block into the accumulators of one tile. `modify` is called on the raw products, unless it is
//   // null; `scale` > 0 is what remains to be multiplied.
//   void Fold(const TileBlock<kRows>& tile, float scale, const Modify* modify);
//   void Finish();  // all folding is done when this returns
template <class Arithmetic>
class TaskRunner {
  static constexpr int kRows = Arithmetic::kRows;

 public:
  TaskRunner(const AttendArgs& args, const Task& task, RowMask& mask, float* arena)
      : args_(args),
        task_(task),
        mask_(mask),
        rows_(static_cast<int>(task.rows.size())),
        pairs_(rows_ * task.heads.size()),
        blocks_((pairs_ + kRows - 1) / kRows),
        arena_{ArenaLayout(blocks_, kRows, args.query.width, args.value.width), arena},
        arithmetic_(args, arena_) {
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
      FindWholeTiles();
      for (const Range& run : mask_.key_blocks()) {
        for (int64_t block = run.begin; block < run.end; ++block) {
          if (IsSet(args_.cancelled)) return;
          FoldKeyBlock(keys, block * kKeyBlock);
        }
      }
    }
    arithmetic_.Finish();
    StoreRows();
  }

 private:
  int64_t RowOf(int pair) const { return task_.group->first_row + task_.rows.begin + pair % rows_; }
  int HeadOf(int pair) const { return task_.heads.begin + pair / rows_; }

  // Queries, and the partial (O, LSE) as accumulators: reference score LSE, denominator 1, output O. Pairs that fill up
  // the last tile attend with zeros and are not stored.
  void LoadRows() {
    for (int pair = 0; pair < blocks_ * kRows; ++pair) {
      const bool real = pair < pairs_;
      arithmetic_.LoadQuery(pair, real ? args_.query.At(RowOf(pair), HeadOf(pair)) : nullptr, query_factor_);
      const float lse = real ? *static_cast<const float*>(args_.lse.At(RowOf(pair), HeadOf(pair)))
                             : -std::numeric_limits<float>::infinity();
      const bool empty = lse == -std::numeric_limits<float>::infinity();
      std::memset(arena_.Output(pair), 0, arena_.layout.v_stride * sizeof(float));
      std::memset(arena_.Sum(pair), 0, ArenaLayout::kMaxLanes * sizeof(float));
      *arena_.Seen(pair) = 0.0f;
      *arena_.Max(pair) = empty ? kNoMax : lse;
      if (empty) continue;
      arena_.Sum(pair)[0] = 1.0f;
      std::memcpy(arena_.Output(pair), args_.output.At(RowOf(pair), HeadOf(pair)), args_.value.width * sizeof(float));
    }
  }

  // Rows that saw no key keep their partial bit for bit.
  void StoreRows() const {
    const FloatTag d;
    for (int pair = 0; pair < pairs_; ++pair) {
      if (*arena_.Seen(pair) == 0.0f) continue;
      const float sum = hn::GetLane(hn::SumOfLanes(d, hn::Load(d, arena_.Sum(pair))));
      float* const output = static_cast<float*>(args_.output.At(RowOf(pair), HeadOf(pair)));
      const float* const unnormalised = arena_.Output(pair);
      for (int i = 0; i < args_.value.width; ++i) output[i] = sum == 0.0f ? 0.0f : unnormalised[i] / sum;
      *static_cast<float*>(args_.lse.At(RowOf(pair), HeadOf(pair))) =
          sum == 0.0f ? -std::numeric_limits<float>::infinity() : *arena_.Max(pair) + std::log(sum);
    }
  }

  // Key rows that every row of a tile attends: within them a block needs no bits. Empty for the last tile when rows
  // fill it up that do not exist.
  void FindWholeTiles() {
    whole_.assign(blocks_, Range{});
    for (int block = 0; block < pairs_ / kRows; ++block) {
      Range whole = mask_.Inner(block * kRows % rows_);
      for (int r = 1; r < kRows; ++r) whole = Intersect(whole, mask_.Inner((block * kRows + r) % rows_));
      whole_[block] = whole;
    }
  }

  void FoldKeyBlock(const KeyRows& keys, int64_t first_key) {
    const int count = static_cast<int>(std::min<int64_t>(kKeyBlock, keys.keys.count - first_key));
    arithmetic_.LoadBlock(keys.first_row + first_key, count, task_.kv_head);
    TileBlock<kRows> tile;
    for (int block = 0; block < blocks_; ++block) {
      if (whole_[block].begin <= first_key && first_key + kKeyBlock <= whole_[block].end) {
        std::fill_n(tile.bits, kRows, ~uint64_t{0});
        tile.first_pair = block * kRows;
        tile.partial = false;
        tile.begin = 0;
        tile.end = kKeyBlock;
        FoldTile(tile, keys.keys, first_key);
        continue;
      }
      uint64_t any = 0, all = ~uint64_t{0};
      int row = block * kRows % rows_;
      for (int r = 0; r < kRows; ++r) {
        tile.bits[r] = 0;
        if (block * kRows + r >= pairs_) continue;
        tile.bits[r] = mask_.BlockBits(row, first_key);
        any |= tile.bits[r];
        all &= tile.bits[r];
        if (++row == rows_) row = 0;
      }
      if (any == 0) continue;
      tile.first_pair = block * kRows;
      tile.partial = all != ~uint64_t{0};
      tile.begin = std::countr_zero(any);
      tile.end = 64 - std::countl_zero(any);
      FoldTile(tile, keys.keys, first_key);
    }
  }

  void FoldTile(const TileBlock<kRows>& tile, const Segment& keys, int64_t first_key) {
    for (int r = 0; r < kRows; ++r) {
      if (tile.bits[r] != 0) *arena_.Seen(tile.first_pair + r) = 1.0f;
    }
    const auto modify = [&] { ModifyTile(tile.first_pair, tile.end, keys, first_key); };
    arithmetic_.Fold(tile, modified_ ? 1.0f : scale_, modified_ ? &modify : nullptr);
  }

  void ModifyTile(int first_pair, int count, const Segment& keys, int64_t first_key) {
    const ScoreArgs& score = args_.score;
    for (int r = 0; r < kRows && first_pair + r < pairs_; ++r) {
      const int pair = first_pair + r;
      const int64_t query_token = task_.group->queries.token(task_.rows.begin + pair % rows_);
      ModifyScores(arena_.Scores() + r * kKeyBlock, count, scale_, score.soft_cap,
                   score.alibi_slopes.empty() ? 0.0f : score.alibi_slopes[HeadOf(pair)],
                   static_cast<float>(query_token + score.position_offset - keys.token(first_key)),
                   static_cast<float>(keys.stride));
    }
  }

  const AttendArgs& args_;
  const Task& task_;
  RowMask& mask_;
  const int rows_;    // query rows of the task
  const int pairs_;   // (row, head) pairs: pair p is row p % rows_ of head p / rows_
  const int blocks_;  // tiles
  const Arena arena_;
  Arithmetic arithmetic_;
  std::vector<Range> whole_;  // of each tile
  bool modified_;             // scores need more than a scale
  float query_factor_;        // -1, 0 or 1
  float scale_;               // positive
};

}  // namespace tessera::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
