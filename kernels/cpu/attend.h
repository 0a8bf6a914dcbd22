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

// Offsets, in floats, of a task's working arrays in a thread's arena. `blocks` counts register tiles of kRowBlock
// (row, head) pairs, numbered head by head.
struct ArenaLayout {
  static constexpr int kMaxLanes = 16;

  ArenaLayout(int64_t blocks, int qk_width, int v_width);

  int v_stride;    // value width rounded up to whole vectors
  size_t query;    // [blocks][qk_width][kRowBlock]
  size_t output;   // [blocks][kRowBlock][v_stride], unnormalised
  size_t sum;      // [blocks][kRowBlock][kMaxLanes], softmax denominators, one partial sum per lane
  size_t max;      // [blocks][kRowBlock], reference scores
  size_t seen;     // [blocks][kRowBlock], not 0 once the pair attended a key
  size_t key;      // [qk_width][kKeyBlock], transposed
  size_t value;    // [kKeyBlock][v_stride]
  size_t score;    // [kRowBlock][kKeyBlock]
  size_t staging;  // [4][qk_width] key rows on their way to `key`
  size_t total;
};

// Runs `task` with `arena` of ArenaLayout(...).total floats, aligned to 64 bytes.
using AttendTask = void (*)(const AttendArgs& args, const Task& task, RowMask& mask, float* arena);

struct InstructionSet {
  int64_t highway_target = 0;
  bool bfloat16_dot = false;    // needs HasBFloat16Dot() and takes bf16 only
  AttendTask attend = nullptr;  // null, as is `attend_backward`, when it is not compiled in
  AttendBackwardTask attend_backward = nullptr;
};

// Every instruction set of every architecture, best first.
std::span<const InstructionSet> InstructionSets();

// AVX-512 with bf16 dot products; null pointers where not compiled in.
const InstructionSet& BFloat16InstructionSet();

}  // namespace tessera::cpu
