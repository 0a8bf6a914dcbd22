// Ways to compute a model's attention over ranks, as the flags of score, generate and bench decode name them.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <utility>
#include <vector>

#include "launcher/lm/exact_runner.h"
#include "partition/decode.h"
#include "partition/decode_price.h"
#include "runtime/latent/mla_decoder.h"

namespace tessera::launcher {

// TPLA's multiplier on each slice's latent logits: 1; 1 / energy share; or the least-squares fit of the whole logit on
// the slice's, recorded by `tessera mla convert`.
enum class SoftmaxMultiplier : uint8_t { kOne, kInverseEnergy, kCalibrated };

struct Method {
  bool exact = false;  // not decoded at all: prefill, sequence sharded
  DecodeMethod method = DecodeMethod::kHead;
  // TPLA
  int groups = 1;
  SoftmaxMultiplier multiplier = SoftmaxMultiplier::kOne;
  bool local_norm = false;

  std::string ToString() const;  // "exact", "head", "tpla g=2 mu=calibrated norm=local"
};

struct MethodFlags {
  explicit MethodFlags(std::string method) : methods{std::move(method)} {}
  std::vector<std::string> methods;
  std::vector<int> groups;
  std::vector<std::string> multipliers{"one"};
  std::vector<std::string> norms{"exact"};
};
void AddMethodFlags(CLI::App& command, MethodFlags& flags);  // --method --groups --mu --norm

// The methods the flags name, in order; TPLA once per combination of groups, multiplier and norm. "all" is exact and
// every decode method, "auto" the exact decode method with the lowest predicted time for `problem`. InvalidArgument
// when a number of groups does not divide `ranks`.
StatusOr<std::vector<Method>> ResolveMethods(const MethodFlags& flags, const DecodeProblem& problem, int ranks);

// One decode step of an MLA layer, for prices.
DecodeProblem DecodeProblemOf(const MlaShape& shape, int64_t context_tokens, int64_t batch, int64_t query_tokens,
                              DType dtype);

// Per layer; empty unless the method is TPLA. FailedPrecondition when the method needs what only a converted model
// records.
StatusOr<std::vector<TplaFactors>> FactorsOf(const Method& method, const LoadedModel& model);

}  // namespace tessera::launcher
