// What the gradients are, on sampled rows: an fp64 recomputation, and the error of a plain single-device run of the
// same kernel against it, as launcher/truth.h does for outputs. The output gradient is zero outside the sampled query
// rows, so that the gradients of keys and values are sums over these rows only; time does not depend on its values.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "launcher/input_source.h"
#include "launcher/run_plan.h"
#include "launcher/truth.h"

namespace tessera::launcher {

using Gradients = std::array<std::vector<double>, 3>;  // of the sampled rows: [rows, heads, width]

struct GradientTruth {
  std::vector<int64_t> rows;  // sampled global tokens of queries and of keys, ascending
  Gradients exact;
  std::array<Errors, 3> plain;
};

// On this rank alone: holds all keys and values, in fp64 too, while it runs. Queries and keys are equally many.
StatusOr<GradientTruth> ComputeGradientTruth(const Problem& problem, const InputSource& input,
                                             std::vector<int64_t> rows, const std::string& kernel, int threads);

// Collective. The errors of the verdict are the largest of the three gradients'; accurate means that each one's
// relative error is at most twice the plain one's (or four fp32 roundings; in fp64 1e-12). `truth` as for Judge;
// `plain` receives the largest plain errors.
StatusOr<Verdict> JudgeGradients(Communicator& comm, const PlanSpec& spec, const BackwardResult& result,
                                 const std::vector<int64_t>& rows, const GradientTruth* truth, int cores,
                                 Errors* plain);

}  // namespace tessera::launcher
