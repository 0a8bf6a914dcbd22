// What the instruction-set-specific code is asked to do: one task folds one range of query rows of one key/value head.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/attention.h"
#include "kernels/cpu/backward.h"
#include "kernels/cpu/blocks.h"

namespace tessera::cpu {

// Query rows of the group and query heads [heads.begin, heads.end) of the call, all reading key head `kv_head`.
struct Task {
  const QueryGroup* group = nullptr;
  Range rows;
  HeadRange heads;
  int kv_head = 0;
};

// Offsets, in floats, of a task's working arrays in a thread's arena. `blocks` counts tiles of `tile_rows` (row, head)
// pairs, numbered head by head. What an array holds is for the arithmetic to say; these are those of fp32.
struct ArenaLayout {
  static constexpr int kMaxLanes = 16;
  static constexpr int kWholeTiles = 32;  // halves of a row of an AMX register

  ArenaLayout(int64_t blocks, int tile_rows, int qk_width, int v_width);

  int v_stride;    // value width rounded up to whole vectors
  size_t query;    // [blocks][qk_width][tile_rows]
  size_t output;   // [blocks][tile_rows][v_stride], unnormalised
  size_t sum;      // [blocks][tile_rows][kMaxLanes], softmax denominators, one partial sum per lane
  size_t max;      // [blocks][tile_rows], reference scores
  size_t seen;     // [blocks][tile_rows], not 0 once the pair attended a key
  size_t key;      // [qk_width][kKeyBlock], transposed
  size_t value;    // [kKeyBlock][v_stride]
  size_t score;    // [3][tile_rows][kKeyBlock], of which fp32 needs the first
  size_t staging;  // [4][qk_width] key rows on their way to `key`
  size_t total;
};

// Runs `task` with `arena` of ArenaLayout(...).total floats, aligned to 64 bytes.
using AttendTask = void (*)(const AttendArgs& args, const Task& task, RowMask& mask, float* arena);

struct InstructionSet {
  int64_t highway_target = 0;
  int tile_rows = kRowBlock;
  bool bfloat16_dot = false;    // needs HasBFloat16Dot() and takes bf16 only
  bool amx = false;             // needs HasAmx() too
  AttendTask attend = nullptr;  // null, as is `backward.run`, when it is not compiled in
  BackwardCode backward;
};

// Every instruction set of every architecture, best first.
std::span<const InstructionSet> InstructionSets();

// AVX-512 with bf16 dot products; null pointers where not compiled in.
const InstructionSet& BFloat16InstructionSet();
// AMX beside it.
const InstructionSet& AmxInstructionSet();
// Whether this processor has AMX for bf16 and the system lets this process use it. Asks the system for that.
bool HasAmx();
// Flops of `steps` steps of four tile products, each with one tile load from the first-level cache; only where
// HasAmx().
double AmxDotPeak(int64_t steps, float* sink);

}  // namespace tessera::cpu
