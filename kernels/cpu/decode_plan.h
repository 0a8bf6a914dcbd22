// How one decode call is cut into pieces. Nothing here depends on the number of threads, nor on the other sequences of
// the call, so neither do the bits of a sequence's result.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cpu/decode.h"
#include "kernels/decode.h"

namespace tessera::cpu {

// Query rows and heads of one sequence that read one key/value head: the pairs (row, head) of a matrix product. Pair p
// is row rows.begin + p / heads.size(), head heads.begin + p % heads.size().
struct DecodePairs {
  const DecodeSequence* sequence = nullptr;
  int kv_head = 0;
  Range rows;  // of the sequence
  HeadRange heads;
  Range keys;  // union of what the rows see
  int64_t chunk_keys = 1;
  size_t first_task = 0;  // in DecodeWave::tasks: one for every chunk of the keys, in their order
  int first_pair = 0;     // of those tasks' pairs: its first
  int pairs() const { return static_cast<int>(rows.size()) * heads.size(); }
  size_t chunks() const { return keys.empty() ? 0 : static_cast<size_t>((keys.size() + chunk_keys - 1) / chunk_keys); }
};

// A chunk of the keys of DecodePairs that differ in their heads only, neighbours: what one thread folds, page by page,
// into partial results of its own. The heads of a page lie behind each other, so memory is read in longer runs than one
// head has.
struct DecodeTask {
  size_t first_head = 0;  // in DecodeWave::pairs
  size_t heads = 0;
  Range keys;
  size_t first_partial = 0;  // index of its first pair among the partials of the wave
};

// What is computed before anything is merged. Waves bound the memory of partial results.
struct DecodeWave {
  std::vector<DecodePairs> pairs;
  std::vector<DecodeTask> tasks;
  size_t partials = 0;

  std::span<const DecodePairs> heads(const DecodeTask& task) const {
    return std::span(pairs).subspan(task.first_head, task.heads);
  }
};
std::vector<DecodeWave> PlanDecode(const DecodeArgs& args);

// Keys that the same pairs see, and those pairs.
struct DecodeSegment {
  Range keys;
  std::vector<DecodeRun> runs;
};
// Cuts a chunk where a row begins or ends to see. No key of a segment is hidden from any of its pairs, so kernels need
// no masks and never touch what a row must not see. Keys that nobody sees are in no segment.
std::vector<DecodeSegment> Segments(const DecodePairs& pairs, Range keys);

}  // namespace tessera::cpu
