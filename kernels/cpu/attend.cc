// Compiles attend-inl.h and backward-inl.h once per instruction set and lists the results.

// SVE vectors have no size at compile time and cannot live in the arrays of a register tile; SSSE3 adds nothing that a
// machine of this decade needs.
#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_SSSE3)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attend.cc"
#include <hwy/foreach_target.h>
// foreach_target.h comes first: it includes this file again for each instruction set.
#include "kernels/cpu/attend-inl.h"
#include "kernels/cpu/backward-inl.h"

#if HWY_ONCE
namespace tessera::cpu {

// HWY_CHOOSE_* is null for what this compiler or architecture does not build. The last entry is Highway's plain C++.
constexpr InstructionSet kInstructionSets[] = {
    {HWY_AVX3, kRowBlock, false, false, HWY_CHOOSE_AVX3(RunTask), {HWY_CHOOSE_AVX3(RunBackwardTask)}},
    {HWY_AVX2, kRowBlock, false, false, HWY_CHOOSE_AVX2(RunTask), {HWY_CHOOSE_AVX2(RunBackwardTask)}},
    {HWY_SSE4, kRowBlock, false, false, HWY_CHOOSE_SSE4(RunTask), {HWY_CHOOSE_SSE4(RunBackwardTask)}},
    {HWY_NEON, kRowBlock, false, false, HWY_CHOOSE_NEON(RunTask), {HWY_CHOOSE_NEON(RunBackwardTask)}},
#if HWY_TARGETS & (HWY_EMU128 | HWY_SCALAR)
    {HWY_TARGETS & (HWY_EMU128 | HWY_SCALAR),
     kRowBlock,
     false,
     false,
     HWY_CHOOSE_FALLBACK(RunTask),
     {HWY_CHOOSE_FALLBACK(RunBackwardTask)}},
#endif
};

std::span<const InstructionSet> InstructionSets() {
  return kInstructionSets;
}

}  // namespace tessera::cpu
#endif  // HWY_ONCE
