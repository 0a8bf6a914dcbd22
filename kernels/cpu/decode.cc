// Compiles decode-inl.h once per instruction set and lists the results.

// The same sets as attend.cc, for the same reasons.
#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_SSSE3)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/decode.cc"
#include <hwy/foreach_target.h>
// foreach_target.h comes first: it includes this file again for each instruction set.
#include "kernels/cpu/decode-inl.h"

#if HWY_ONCE
namespace tessera::cpu {

#define TESSERA_DECODE_SET(target, choose) \
  { target, choose(DecodeLoadQuery), choose(DecodeFold), choose(DecodeAdd) }

constexpr DecodeInstructionSet kInstructionSets[] = {
    TESSERA_DECODE_SET(HWY_AVX3, HWY_CHOOSE_AVX3),
    TESSERA_DECODE_SET(HWY_AVX2, HWY_CHOOSE_AVX2),
    TESSERA_DECODE_SET(HWY_SSE4, HWY_CHOOSE_SSE4),
    TESSERA_DECODE_SET(HWY_NEON, HWY_CHOOSE_NEON),
#if HWY_TARGETS & (HWY_EMU128 | HWY_SCALAR)
    TESSERA_DECODE_SET((HWY_TARGETS & (HWY_EMU128 | HWY_SCALAR)), HWY_CHOOSE_FALLBACK),
#endif
};

std::span<const DecodeInstructionSet> DecodeInstructionSets() {
  return kInstructionSets;
}

}  // namespace tessera::cpu
#endif  // HWY_ONCE
