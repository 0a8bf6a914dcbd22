// Compiles decoding for AMX, which stands beside the AVX-512 of Highway's; what is included for its other instruction
// sets is empty.
#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_SSSE3)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/decode_amx.cc"
#include <hwy/foreach_target.h>
// foreach_target.h comes first: it includes this file again for each instruction set.
#include "kernels/cpu/decode_amx-inl.h"
#include "kernels/cpu/tiles_amx-inl.h"

#if HWY_ONCE
#include "kernels/cpu/decode_amx.h"
#include "kernels/cpu/lanes.h"

namespace tessera::cpu {

DecodeTileLayout::DecodeTileLayout(const DecodeState& state)
    : depth(state.qk_stride / 2), query_stride((((state.most_pairs + 15) / 16) | 1) * 16) {
  const size_t groups = (state.most_pairs + kPairs - 1) / kPairs;
  total = 0;
  const auto take = [this](size_t floats) {
    const size_t offset = total;
    total += RoundUpToLanes(floats);
    return offset;
  };
  query = take(static_cast<size_t>(depth) * query_stride);
  key = take(static_cast<size_t>(kKeys) * depth);
  score = take(size_t{2} * kKeys * kPairs);
  weight = take(groups * kPairs * kKeys / 2);
  value = take(size_t{kKeys} * kColumns);
  staging = take(size_t{kPairs} * kColumns);
}

DecodeInstructionSet DecodeTileInstructionSet(decltype(DecodeInstructionSet::fold) fold,
                                              decltype(DecodeInstructionSet::begin) begin,
                                              decltype(DecodeInstructionSet::end) end) {
  // Rows of queries are read, and partial results added, as without tiles.
  DecodeInstructionSet set = DecodeBFloat16InstructionSet();
  if (set.fold == nullptr) return set;
#if HWY_TARGETS & HWY_AVX3
  set.pack_queries = N_AVX3::amx::PackQueries;
#endif
  set.fold = fold;
  set.begin = begin;
  set.end = end;
  set.block_keys = DecodeTileLayout::kKeys;
  set.scratch_floats = [](const DecodeState& state) { return DecodeTileLayout(state).total; };
  return set;
}

const DecodeInstructionSet& DecodeAmxInstructionSet() {
  static const DecodeInstructionSet set = [] {
    DecodeInstructionSet amx;
#if HWY_TARGETS & HWY_AVX3
    amx = DecodeTileInstructionSet(N_AVX3::amx::FoldOnTiles<N_AVX3::AmxTiles>,
                                   N_AVX3::amx::BeginTiles<N_AVX3::AmxTiles>, N_AVX3::amx::EndTiles<N_AVX3::AmxTiles>);
    amx.amx = true;
#endif
    return amx;
  }();
  return set;
}

}  // namespace tessera::cpu
#endif  // HWY_ONCE
