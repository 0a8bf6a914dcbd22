// Seeded random histories of a latent decoder: sequences that grow, fork, are cut short and end, possibly after a
// distributed prefill. Run as one rank, and computed in fp64.
#pragma once

#include <random>
#include <string>
#include <vector>

#include "collectives/communicator.h"
#include "runtime/latent/mla_decoder.h"
#include "runtime/latent/mla_prefill.h"
#include "tests/unit/latent/layer.h"

namespace tessera::latent_test {

// Sequences are numbered in the order they start or fork.
struct Event {
  enum class Kind : uint8_t { kStep, kFork, kTruncate, kRelease };
  Kind kind = Kind::kStep;
  std::vector<StepTokens> step;  // entries of no tokens too
  int64_t sequence = 0;
  int64_t tokens = 0;
};

struct LatentCase {
  MlaShape shape;
  MlaDecoderOptions options;
  std::vector<RandomLayer> layers;
  std::vector<TplaFactors> factors;  // per layer
  std::string strategy;              // of a prefill of the first sequences; empty = they start empty
  std::vector<int64_t> prefix;       // tokens of each sequence that starts at the beginning
  std::vector<Event> events;
  reference::Dense hidden;  // [tokens of prefixes and steps, D], exact in fp32; every layer is given the same

  std::string ToString() const;
};

// Draws the whole case: odd heads (fewer than ranks too), widths, RoPE, cache and projection dtypes. Under TPLA
// `options.groups` is a divisor of `ranks`.
LatentCase RandomLatentCase(DecodeMethod method, int ranks, std::mt19937_64& generator);
// The same with a prefill before it.
LatentCase RandomPrefilledCase(DecodeMethod method, int ranks, const std::string& strategy, std::mt19937_64& generator);
// The same case for one rank, exactly: what one device makes of it in the same dtypes.
MlaDecoderOptions OneRank(const MlaDecoderOptions& options);

// What the prefill of all ranks left, NaN where nothing was written; ranks as threads share it.
struct PrefillResult {
  std::vector<float> output;      // [layers, tokens, D]
  std::vector<float> cache_rows;  // [layers, tokens, C + dr]
};
PrefillResult EmptyPrefill(const LatentCase& problem);

// Runs one rank. `output`: per step and layer [rows, D], one after the other. Checks after every event what the local
// cache holds: rows, pages and bytes. `prefill` may be null.
Status RunLatentRank(Communicator& comm, const LatentCase& problem, const MlaDecoderOptions& options,
                     std::vector<float>& output, PrefillResult* prefill = nullptr);
// Rows of the local cache that `rank` must have of `tokens` tokens, counted token by token.
int64_t RowsHeld(const MlaDecoderOptions& options, int ranks, int rank, int64_t tokens);

// The same in fp64; `options` as given to the decoder.
StatusOr<std::vector<double>> ExactSteps(const LatentCase& problem, const MlaDecoderOptions& options);
StatusOr<std::vector<double>> ExactPrefill(const LatentCase& problem);
StatusOr<std::vector<double>> ExactCacheRows(const LatentCase& problem);

// Relative to the root mean square of the exact values; infinite where something is not a number.
struct RelativeErrors {
  double rms = 0;
  double max = 0;
};
RelativeErrors ErrorsOf(const std::vector<float>& values, const std::vector<double>& exact);
// At most twice the plain error, plus a few roundings of fp32; and the plain error, which the code under test made
// itself, no larger than rounding in these dtypes explains. Empty when it holds.
std::string Compare(const RelativeErrors& error, const RelativeErrors& plain, const MlaDecoderOptions& options);

}  // namespace tessera::latent_test
