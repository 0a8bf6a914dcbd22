// What is right, on sampled query rows: an fp64 recomputation, and the error that a plain single-device run of the same
// kernel in the same dtype makes against it. Distributed results are judged by comparison with the latter.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "collectives/communicator.h"
#include "launcher/input_source.h"
#include "partition/layout.h"
#include "partition/problem.h"

namespace tessera::launcher {

struct Errors {
  double max_absolute = 0;  // of the output
  double relative = 0;      // ||output - exact|| / ||exact||
  double lse_relative = 0;  // max |lse - exact| / max(1, |exact|)
};

struct Truth {
  std::vector<int64_t> rows;   // sampled global query tokens, ascending
  std::vector<double> output;  // [rows, query_heads, v_width]
  std::vector<double> lse;     // [rows, query_heads], natural log
  double largest = 0;          // max |output|
  Errors plain;                // of the single-device run
};

// Up to `count` tokens of [0, tokens), one per stratum, first and last included; the same for every rank and strategy.
std::vector<int64_t> SampleRows(int64_t tokens, int64_t count);

// On this rank alone: holds all keys and values while it runs.
StatusOr<Truth> ComputeTruth(const Problem& problem, const InputSource& input, std::vector<int64_t> rows,
                             const std::string& kernel, int threads);

// Results of the sampled rows, widened.
struct SampledResult {
  std::vector<double> output;  // as Truth::output
  std::vector<double> lse;
};

// The sampled tokens that `rank` owns, in the order of its local rows, as indices into `tokens` and local rows.
struct OwnedSample {
  size_t sample = 0;
  int64_t local_row = 0;
};
std::vector<OwnedSample> OwnedSamples(const Layout& layout, int rank, const std::vector<int64_t>& tokens);

// Collective. Brings the sampled rows of a distributed tensor, widened, to every rank.
StatusOr<std::vector<double>> GatherRows(Communicator& comm, const Layout& layout, const std::vector<int64_t>& rows,
                                         const ConstTensorView& local);
StatusOr<SampledResult> GatherSamples(Communicator& comm, const Layout& layout, const std::vector<int64_t>& rows,
                                      const ConstTensorView& output, const ConstTensorView& lse);

Errors Compare(const Truth& truth, const SampledResult& result);

// The relative error is at most twice that of the plain run (or four roundings of the accumulators, when that is more:
// the plain run can be exact by luck), the maximum error at most twice that of the plain run plus one rounding of the
// dtype at the largest magnitude, and the LSE is within 1e-5 (fp64: everything within about 1e-12).
bool Acceptable(const Errors& errors, const Truth& truth, DType dtype);

}  // namespace tessera::launcher
