// Compiles bf16 forward and backward for AVX-512, the one instruction set of Highway's whose processors may have bf16
// dot products; what is included for the others is empty.
#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_SSSE3)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attend_bf16.cc"
#include <hwy/foreach_target.h>
// foreach_target.h comes first: it includes this file again for each instruction set.
#include "kernels/cpu/attend_bf16-inl.h"
#include "kernels/cpu/backward_bf16-inl.h"

#if HWY_ONCE
#include "kernels/cpu/attend.h"

namespace tessera::cpu {

const InstructionSet& BFloat16InstructionSet() {
#if HWY_TARGETS & HWY_AVX3
  static constexpr InstructionSet set{
      HWY_AVX3, kRowBlock, true, false, N_AVX3::bfloat16::RunTask, {N_AVX3::bfloat16::RunBackwardTask}};
#else
  static constexpr InstructionSet set;
#endif
  return set;
}

}  // namespace tessera::cpu
#endif  // HWY_ONCE
