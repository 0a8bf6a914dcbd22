// Working arrays of decoding on a tile unit, and the instruction sets that are built on one.
#pragma once

#include <cstddef>

#include "kernels/cpu/decode.h"

namespace tessera::cpu {

// Offsets, in floats, into DecodeState::scratch. A dword holds a pair of bf16 factors: neighbours along the width, or
// the same column of two neighbouring keys. A group is kPairs (query row, head) pairs, whose scores and weights are
// computed together; with tiles of 16 rows, that is two tiles.
struct DecodeTileLayout {
  // Keys of a block: each tile of the outputs is loaded and stored once for so many, at 20 cycles or more, beside 8
  // products of 16.
  static constexpr int kKeys = 256;
  static constexpr int kPairs = 32;
  static constexpr int kStepKeys = 32;  // of one product of a tile of weights
  static constexpr int kSteps = kKeys / kStepKeys;
  static constexpr int kColumns = 32;  // of the values, that are packed at a time

  explicit DecodeTileLayout(const DecodeState& state);

  int depth;  // dwords of a query or key
  // Dwords, an odd number of cache lines: then 288 rows of a group, two lines each, spread over all sets of the
  // first-level cache. Sixteen columns may be read from any pair on; those behind the last are some other numbers,
  // whose sums nobody reads.
  int query_stride;
  size_t query;    // [depth][query_stride] pairs along the width
  size_t key;      // [kKeys][depth] keys that cannot be read where they lie
  size_t score;    // [2][kKeys][kPairs] fp32
  size_t weight;   // [groups][kSteps][kPairs][kStepKeys / 2] pairs of keys
  size_t value;    // [2][kKeys / 2][kColumns] pairs of keys
  size_t staging;  // [kPairs][kColumns] fp32, outputs of a group that does not fill its tiles
  size_t total;
};

// Decoding on AMX; `fold` is null where it is not compiled in.
const DecodeInstructionSet& DecodeAmxInstructionSet();
// The same over another tile unit, whose code this is; for tests on processors without AMX. `amx` is not set.
DecodeInstructionSet DecodeTileInstructionSet(decltype(DecodeInstructionSet::fold) fold,
                                              decltype(DecodeInstructionSet::begin) begin,
                                              decltype(DecodeInstructionSet::end) end);

}  // namespace tessera::cpu
