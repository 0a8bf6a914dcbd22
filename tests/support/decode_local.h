// One rank's part of a random decode step: its cache in shuffled pages, and its queries.
#pragma once

#include <vector>

#include "tests/support/decode_case.h"

namespace tessera::testing {

struct LocalDecode {
  std::vector<std::byte> pool;  // NaN wherever no token lies
  CacheLayer layer;             // of `pool`
  std::vector<std::vector<int32_t>> pages;
  std::vector<std::vector<Range>> visible;
  std::vector<DecodeSequence> sequences;  // views of `pages` and `visible`
  std::vector<std::byte> query;           // [rows, own query heads, qk_width]
};
LocalDecode LayOut(const DecodeCase& problem, int rank);

// Columns of a key row that a rank stores: a slice of the latent ones and everything after them, or all.
std::vector<int> KeyColumns(const DecodeCase& problem, int rank);

// What the sequences' query rows see of the rank's rows; `local.sequences` show it.
void ShowVisible(const DecodeCase& problem, int rank, LocalDecode& local);
// The rank's query tensor.
void LayOutQuery(const DecodeCase& problem, int rank, LocalDecode& local);

}  // namespace tessera::testing
