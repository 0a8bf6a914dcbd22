// The bytes of one message of a reshard plan in the order both ends agree on, and where they lie on one of them.
// Internal to the engine.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "partition/reshard.h"

namespace tessera {

// Rows that follow each other on this rank: `bytes` of each, beginning `offset` bytes into the row of a key or value
// head.
struct RowRun {
  int sequence = 0;
  bool value = false;
  int head = 0;  // local
  int64_t offset = 0;
  int64_t bytes = 0;
  int64_t row = 0;  // local
  int64_t count = 0;
};

// Part by part, each part head by head and each head row by row: the bytes do not depend on which end lists them.
std::vector<RowRun> RunsOf(const ReshardMessage& message, const ReshardSpec& spec, const CacheEnd& end, int index);

// Where some rows lie: `rows` of them, `stride` bytes apart.
struct RowAddress {
  std::byte* data = nullptr;
  int64_t stride = 0;
  int64_t rows = 0;
};

// A position in the stream of a message over several layers.
class StreamCursor {
 public:
  StreamCursor(const std::vector<RowRun>& runs, Range layers) : runs_(&runs), layers_(layers), layer_(layers.begin) {}

  // Visits the next rows that fit into `most` bytes, whole rows only, as visit(layer, run, first row of the run,
  // count); returns their bytes, 0 at the end. `most` is at least a row.
  template <typename Visit>
  int64_t Next(int64_t most, Visit visit) {
    int64_t bytes = 0;
    for (; layer_ < layers_.end && !runs_->empty(); run_ = 0, ++layer_) {
      for (; run_ < runs_->size(); row_ = 0, ++run_) {
        const RowRun& run = (*runs_)[run_];
        const int64_t count = std::min(run.count - row_, (most - bytes) / run.bytes);
        if (count > 0) visit(static_cast<int>(layer_), run, row_, count);
        bytes += count * run.bytes;
        row_ += count;
        if (row_ < run.count) return bytes;
      }
    }
    return bytes;
  }

 private:
  const std::vector<RowRun>* runs_;
  Range layers_;
  int64_t layer_;
  size_t run_ = 0;
  int64_t row_ = 0;
};

}  // namespace tessera
