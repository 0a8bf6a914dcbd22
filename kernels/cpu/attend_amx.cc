// Compiles forward and backward for AMX, which stands beside the AVX-512 of Highway's; what is included for its other
// instruction sets is empty.
#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_SSSE3)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attend_amx.cc"
#include <hwy/foreach_target.h>
// foreach_target.h comes first: it includes this file again for each instruction set.
#include "kernels/cpu/attend_amx-inl.h"
#include "kernels/cpu/backward_task_amx-inl.h"
#include "kernels/cpu/tiles_amx-inl.h"

#if HWY_ONCE
#include "kernels/cpu/attend.h"
#include "kernels/cpu/backward_amx.h"

namespace tessera::cpu {

const InstructionSet& AmxInstructionSet() {
#if HWY_TARGETS & HWY_AVX3
  static constexpr InstructionSet set{
      HWY_AVX3,
      32,
      true,
      true,
      N_AVX3::amx::RunTask<N_AVX3::AmxTiles>,
      {N_AVX3::amx::RunBackwardTask<N_AVX3::AmxTiles>, TileBackwardLayout::kUnitRows, TileBackwardFloats}};
#else
  static constexpr InstructionSet set;
#endif
  return set;
}

}  // namespace tessera::cpu
#endif  // HWY_ONCE
