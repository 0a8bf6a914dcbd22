// Scores and masks of the reference, for its forward and backward passes.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <vector>

#include "kernels/attention.h"

namespace tessera::reference {

// Key rows that one query may attend, with their global tokens.
struct KeyRun {
  int64_t first_row = 0;
  Segment keys;
};

// Rows of `keys` that query token `q` attends, one run per band.
inline void AppendRuns(std::span<const Band> bands, int64_t q, int64_t first_row, const Segment& keys,
                       std::vector<KeyRun>* runs) {
  for (const Band& band : bands) {
    const Range rows = RowsWithin(keys, band.KeysOf(q));
    if (!rows.empty()) runs->push_back({first_row + rows.begin, tessera::Rows(keys, rows)});
  }
}

inline double Dot(const void* a, const void* b, DType dtype, int width) {
  double dot = 0;
  for (int i = 0; i < width; ++i) {
    dot += LoadAsDouble(a, dtype, i) * LoadAsDouble(b, dtype, i);
  }
  return dot;
}

// The score before ALiBi.
inline double Score(const void* query, const void* key, DType dtype, int width, const ScoreArgs& score) {
  const double scaled = Dot(query, key, dtype, width) * static_cast<double>(score.scale);
  const double cap = score.soft_cap;
  return cap > 0 ? cap * std::tanh(scaled / cap) : scaled;
}

// What ALiBi takes off a score; without a slope nothing, however far the key.
inline double Penalty(double slope, const ScoreArgs& score, int64_t query_token, int64_t key_token) {
  if (slope == 0) return 0;
  return slope * static_cast<double>(std::abs(query_token + score.position_offset - key_token));
}

}  // namespace tessera::reference
