// Seeded random problems and their tensors, for tests of planners and of execution.
#pragma once

#include <cstdint>
#include <numeric>
#include <random>
#include <string_view>
#include <vector>

#include "partition/problem.h"
#include "runtime/base/tensor.h"

namespace tessera::testing {

// How many random problems a test draws: all of them, or a fifth under a sanitizer.
constexpr int Problems(int count) {
#ifdef TESSERA_SANITIZED
  return (count + 4) / 5;
#else
  return count;
#endif
}

// Rank counts 1 to 64 for what is counted without running: all of them, or a few under a sanitizer.
inline std::vector<int> RankCounts() {
#ifdef TESSERA_SANITIZED
  return {1, 2, 3, 4, 7, 8, 12, 31, 64};
#else
  std::vector<int> counts(64);
  std::iota(counts.begin(), counts.end(), 1);
  return counts;
#endif
}
// The largest world that is planned: a sanitizer gets a sixteenth of it.
#ifdef TESSERA_SANITIZED
inline constexpr int kManyRanks = 256;
#else
inline constexpr int kManyRanks = 4096;
#endif

// A generator whose seed is the digest of the case's name, so that every case is reproducible by name alone.
std::mt19937_64 GeneratorFor(std::string_view name);

// Any problem Tessera must serve: odd and tiny lengths (zero too), cross lengths, grouped heads, qk width != v width,
// every mask family, score options. `most_tokens` bounds the lengths.
Problem RandomProblem(std::mt19937_64& generator, int64_t most_tokens);

// A drawn number with all the digits of its dtype, so that an fp64 problem does not survive a trip through fp32.
inline double Drawn(DType dtype, float normal) {
  return dtype == DType::kFloat64 ? static_cast<double>(normal) * (1 + 0x1p-30) : static_cast<double>(normal);
}

// Whole tensors of a problem, standard normal, in its dtype.
struct Tensors {
  std::vector<std::byte> query, key, value;
  std::vector<float> alibi_slopes, sinks;
};
Tensors RandomTensors(const Problem& problem, std::mt19937_64& generator);

ConstTensorView QueryView(const Problem& problem, const Tensors& tensors);
ConstTensorView KeyView(const Problem& problem, const Tensors& tensors);
ConstTensorView ValueView(const Problem& problem, const Tensors& tensors);

}  // namespace tessera::testing
