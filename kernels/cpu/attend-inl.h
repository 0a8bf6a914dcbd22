// The forward pass in fp32 arithmetic, for any dtype: blocks are converted as they are packed.
#if defined(TESSERA_KERNELS_CPU_ATTEND_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TESSERA_KERNELS_CPU_ATTEND_INL_H_
#undef TESSERA_KERNELS_CPU_ATTEND_INL_H_
#else
#define TESSERA_KERNELS_CPU_ATTEND_INL_H_
#endif

#include <hwy/highway.h>

#include "kernels/cpu/pack-inl.h"
#include "kernels/cpu/runner-inl.h"
#include "kernels/cpu/softmax-inl.h"
#include "kernels/cpu/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tessera::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// See TaskRunner.
class FloatArithmetic {
 public:
  static constexpr int kRows = kRowBlock;

  FloatArithmetic(const AttendArgs& args, const Arena& arena) : args_(args), arena_(arena) {}

  void LoadQuery(int pair, const void* row, float factor) {
    float* const query = QueryBlock(pair / kRowBlock) + pair % kRowBlock;
    float* const staging = arena_.data + arena_.layout.staging;
    if (row != nullptr) ToFloats(row, args_.query.dtype, args_.query.width, staging);
    for (int i = 0; i < args_.query.width; ++i) query[i * kRowBlock] = row != nullptr ? factor * staging[i] : 0.0f;
  }

  void LoadBlock(int64_t row, int count, int kv_head) {
    PackKeys(args_.key, row, count, kv_head, arena_.data + arena_.layout.staging, arena_.data + arena_.layout.key);
    finite_ = PackValues(args_.value, row, count, kv_head, arena_.layout.v_stride, arena_.data + arena_.layout.value);
  }

  template <class Modify>
  void Fold(const TileBlock<kRows>& tile, float scale, const Modify* modify) {
    const int v_stride = arena_.layout.v_stride, count = tile.end;
    float* const scores = arena_.Scores();
    const float* const value = arena_.data + arena_.layout.value;
    Scores(QueryBlock(tile.first_pair / kRowBlock), kRowBlock, 1, arena_.data + arena_.layout.key, args_.query.width,
           count, scores);
    if (modify != nullptr) (*modify)();
    for (int r = 0; r < kRowBlock; ++r) {
      float* const row = scores + r * kKeyBlock;
      const int pair = tile.first_pair + r;
      if (tile.partial) MaskScores(tile.bits[r], count, row);
      SoftmaxRow(row, count, scale, v_stride, arena_.Max(pair), arena_.Sum(pair), arena_.Output(pair));
    }
    if (HWY_LIKELY(finite_ || !tile.partial)) {
      AddValues(scores, value, v_stride, count, arena_.Output(tile.first_pair));
      return;
    }
    for (int r = 0; r < kRowBlock; ++r) {
      AddSeenValues(scores + r * kKeyBlock, tile.bits[r], value, v_stride, count, arena_.Output(tile.first_pair + r));
    }
  }

  void Finish() {}

 private:
  float* QueryBlock(int block) const {
    return arena_.data + arena_.layout.query + static_cast<size_t>(block) * kRowBlock * args_.query.width;
  }

  const AttendArgs& args_;
  const Arena arena_;
  bool finite_ = true;
};

void RunTask(const AttendArgs& args, const Task& task, RowMask& mask, float* arena) {
  TaskRunner<FloatArithmetic>(args, task, mask, arena).Run();
}

}  // namespace tessera::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
