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
#include "kernels/cpu/backward_rows-inl.h"
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

// `Arithmetic` says how the operands are packed and multiplied:
//   Arithmetic(const AttendBackwardArgs& args, const BackwardArena& arena);
//   // Null: zeros. False when it, or the even pair before it, is not all finite.
//   bool LoadPair(int pair, const void* query, const void* output_gradient);
//   void LoadBlock(int64_t row, int count, int kv_head);                      // packs keys and values
//   float* Scores(int tile), * Gradients(int tile);  // [kRowBlock][kKeyBlock] of a tile in hand
//   void Multiply(const BackwardTile& tile);         // S and dP, before any scale
//   void Differentiate(const BackwardTile& tile);    // S and dP to P and dS / scale, where scores need only the scale
//   void AddToQueries(const BackwardTile& tile);     // dQ / scale; keeps P and dS for the keys
//   void Skip(int tile);                             // its P and dS are zero
//   // dV and dK / scale of the pass's rows [row, row + depth), of which the first is `first_pair`. `bits` is null
//   // unless a hidden row is not finite.
//   void AddToKeys(int first_pair, int row, int depth, const uint64_t* bits);
template <class Arithmetic>
class BackwardRunner {
 public:
  BackwardRunner(const AttendBackwardArgs& args, const BackwardTask& task, RowMask& mask, float* arena)
      : args_(args),
        task_(task),
        mask_(mask),
        blocks_((static_cast<int>(task.rows.queries.count) * task.heads.size() + kRowBlock - 1) / kRowBlock),
        arena_{BackwardLayout(blocks_, args.query.width, args.value.width), arena},
        rows_(args, task, mask, arena + arena_.layout.lse, arena + arena_.layout.delta),
        arithmetic_(args, arena_) {}

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
    for (int pair = 0; pair < rows_.pairs(); ++pair) rows_.AddToQuery(pair, arena_.QueryGradient(pair));
  }

 private:
  // Pairs that fill up the last tile are zero and attend nothing.
  void LoadRows() {
    rows_.Load(blocks_ * kRowBlock);
    for (int pair = 0; pair < blocks_ * kRowBlock; ++pair) {
      std::memset(arena_.QueryGradient(pair), 0, arena_.layout.qk_stride * sizeof(float));
      queries_finite_ &= arithmetic_.LoadPair(pair, rows_.Query(pair), rows_.OutputGradient(pair));
    }
  }

  void FoldKeyBlock(int64_t first_key) {
    const int count = static_cast<int>(std::min<int64_t>(kKeyBlock, task_.rows.keys.count - first_key));
    arithmetic_.LoadBlock(task_.rows.key_row + first_key, count, task_.kv_head);
    std::memset(arena_.KeyGradient(0), 0, size_t{kKeyBlock} * arena_.layout.qk_stride * sizeof(float));
    std::memset(arena_.ValueGradient(0), 0, size_t{kKeyBlock} * arena_.layout.v_stride * sizeof(float));
    for (int block = 0; block < blocks_; block += kTilesPerPass) {
      FoldPass(block, std::min(kTilesPerPass, blocks_ - block), first_key);
    }
    for (int j = 0; j < count; ++j) rows_.AddToKey(first_key + j, arena_.KeyGradient(j), arena_.ValueGradient(j));
  }

  // Tiles [first, first + count) against the packed key block.
  void FoldPass(int first, int count, int64_t first_key) {
    uint64_t bits[kTilesPerPass * kRowBlock];
    Range active;  // tiles of the pass
    bool partial = false;
    for (int tile = 0; tile < count; ++tile) {
      uint64_t* const tile_bits = bits + tile * kRowBlock;
      const int first_pair = (first + tile) * kRowBlock;
      const MetKeys met = rows_.Meet(first_pair, kRowBlock, first_key, tile_bits);
      partial |= met.all != ~uint64_t{0};
      if (met.any == 0) {
        arithmetic_.Skip(tile);
        continue;
      }
      if (active.empty()) active.begin = tile;
      active.end = tile + 1;
      FoldTile({first_pair, tile, tile_bits, met.all != ~uint64_t{0}, 64 - std::countl_zero(met.any)}, first_key);
    }
    if (active.empty()) return;
    const int row = static_cast<int>(active.begin) * kRowBlock, depth = static_cast<int>(active.size()) * kRowBlock;
    arithmetic_.AddToKeys(first * kRowBlock + row, row, depth, partial && !queries_finite_ ? bits + row : nullptr);
  }

  void FoldTile(const BackwardTile& tile, int64_t first_key) {
    arithmetic_.Multiply(tile);
    if (HWY_LIKELY(!rows_.modified())) {
      arithmetic_.Differentiate(tile);
    } else {
      for (int r = 0; r < kRowBlock; ++r) {
        if (tile.bits[r] == 0) continue;
        rows_.Differentiate(tile.first_pair + r, first_key, tile.count, arithmetic_.Scores(tile.tile) + r * kKeyBlock,
                            arithmetic_.Gradients(tile.tile) + r * kKeyBlock, arena_.data + arena_.layout.cap_slope);
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

  const AttendBackwardArgs& args_;
  const BackwardTask& task_;
  RowMask& mask_;
  const int blocks_;  // register tiles
  const BackwardArena arena_;
  BackwardRows rows_;
  Arithmetic arithmetic_;
  bool queries_finite_ = true;
};

}  // namespace tessera::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
