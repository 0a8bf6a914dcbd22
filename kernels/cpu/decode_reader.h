// In which order a thread that decodes meets the cache.
#pragma once

#include <cstddef>
#include <vector>

#include "kernels/cpu/decode.h"
#include "kernels/cpu/decode_plan.h"
#include "kernels/decode.h"

namespace tessera::cpu {

// Where a thread is in its tasks.
struct DecodePlace {
  size_t task = 0;                         // in DecodeWave::tasks
  const DecodeSegment* segment = nullptr;  // of the reader
  DecodeBlock block;
};

// Visits the blocks of tasks [begin, end), up to `block_keys` rows each of all heads of the task.
// Arguments must outlive it.
class DecodeReader {
 public:
  DecodeReader(const DecodeArgs& args, const DecodeWave& wave, size_t begin, size_t end, int block_keys);

  // False, and no keys in the block, when there is no further one.
  bool Next(DecodePlace* place);

 private:
  // The first segment from this one on, counted from `begin`.
  void Enter(size_t task, size_t segment);

  const CacheLayer& cache_;
  const DecodeWave& wave_;
  const size_t begin_;
  const int block_keys_;
  std::vector<std::vector<DecodeSegment>> segments_;  // of each task
  size_t task_ = 0, segment_ = 0;                     // of the next block; task_ counts from begin_
  Range keys_;                                        // of the segment, those to come
};

}  // namespace tessera::cpu
