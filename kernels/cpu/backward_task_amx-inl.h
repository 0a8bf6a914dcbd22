// One task of the backward pass on a tile unit. See backward_runner-inl.h for what a task is, and why one pass over it
// is enough.
#if HWY_TARGET == HWY_AVX3
#if defined(TESSERA_KERNELS_CPU_BACKWARD_TASK_AMX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TESSERA_KERNELS_CPU_BACKWARD_TASK_AMX_INL_H_
#undef TESSERA_KERNELS_CPU_BACKWARD_TASK_AMX_INL_H_
#else
#define TESSERA_KERNELS_CPU_BACKWARD_TASK_AMX_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>

#include "kernels/cpu/backward_amx-inl.h"
#include "kernels/cpu/backward_operands_amx-inl.h"

HWY_PUSH_ATTRIBUTES(HWY_TARGET_STR ",avx512bf16")
namespace tessera::cpu::HWY_NAMESPACE::amx {

template <class Tiles>
void RunBackwardTask(const AttendBackwardArgs& args, const BackwardTask& task, RowMask& mask, float* arena) {
  mask.Reset(args.bands, task.rows.queries, task.rows.keys);
  if (mask.key_blocks().empty()) return;
  const int pairs = static_cast<int>(task.rows.queries.count) * task.heads.size();
  const int units = (pairs + kUnitRows - 1) / kUnitRows;
  const TileOperands operands(args, TileBackwardLayout(units, args.query.width, args.value.width), arena);
  BackwardRows rows(args, task, mask, operands.Lse(0), operands.Delta(0));
  rows.Load(units * kUnitRows);
  for (int unit = 0; unit < units; ++unit) operands.LoadUnit(unit, rows);
  {
    TileBackward<Tiles> backward(args, rows, operands);
    for (const Range& run : mask.key_blocks()) {
      for (int64_t block = run.begin; block < run.end; ++block) {
        if (IsSet(args.cancelled)) return;
        const int64_t first_key = block * kKeyBlock;
        const int count = static_cast<int>(std::min<int64_t>(kKeyBlock, task.rows.keys.count - first_key));
        backward.LoadBlock(first_key, task.rows.key_row + first_key, count, task.kv_head);
        UnitBlock met;
        for (met.unit = 0; met.unit < units; ++met.unit) {
          const MetKeys keys = rows.Meet(met.unit * kUnitRows, kUnitRows, first_key, met.bits);
          if (keys.any == 0) continue;
          met.partial = keys.all != ~uint64_t{0};
          met.groups = keys.any >> kGroup != 0 ? 2 : 1;
          backward.Fold(met);
        }
      }
    }
    backward.Finish();
  }
  for (int unit = 0; unit < units; ++unit) {
    const float* const gradient = operands.QueryGradientRows(unit);
    for (int r = 0; r < kUnitRows && unit * kUnitRows + r < pairs; ++r) {
      rows.AddToQuery(unit * kUnitRows + r, gradient + r * operands.layout().qk_stride);
    }
  }
}

}  // namespace tessera::cpu::HWY_NAMESPACE::amx
HWY_POP_ATTRIBUTES
#endif
#endif  // HWY_AVX3
