// Backward passes of random problems for kernel tests: what goes into one, the fp64 oracle and a plain fp32 program.
#pragma once

#include <vector>

#include "kernels/attention_backward.h"
#include "tests/unit/kernels/problem.h"

namespace tessera::testing {

// Everything a backward pass reads, whole sequences: output and gradient in the problem's dtype, LSE and delta fp32.
struct BackwardProblem {
  BackwardProblem(const AttentionKernel& forward, const Problem& problem, Random& random);

  const Problem& problem;
  Tensor output_gradient, output, lse, delta;
};

// dq [Sq, H, D], dk [Sk, Hk, D], dv [Sk, Hk, Dv], dsink [H].
struct GradientResult {
  std::vector<double> query, key, value, sink;
};

// fp32 gradients of whole sequences, dense; start as zero.
struct GradientSums {
  explicit GradientSums(const Problem& problem);
  Tensor query, key, value;
  bool SameBits(const GradientSums& other) const {
    return query.bytes() == other.query.bytes() && key.bytes() == other.key.bytes() &&
           value.bytes() == other.value.bytes();
  }
};

AttendBackwardArgs BackwardArgsOf(const BackwardProblem& backward, const GradientSums& sums,
                                  std::span<const Tile> tiles);
// Gradients rounded to the problem's dtype, with the sink's.
GradientResult RoundGradients(const BackwardProblem& backward, const GradientSums& sums);

// The fp64 oracle and a plain fp32 program, run once. With `bf16_weights` the program rounds P and dS before they meet
// matrices.
class GradientJudge {
 public:
  explicit GradientJudge(const BackwardProblem& backward, bool bf16_weights = false);
  // Fails the current test unless each gradient is at most twice as far from the oracle as the plain program's.
  void Expect(const GradientResult& result) const;

 private:
  GradientResult exact_, plain_;
  // The gradients' magnitudes before terms cancel: where they cancel wholly (one key: dP = delta) what is left is
  // rounding, and only these tell how much is due.
  GradientResult size_;
  double largest_lse_ = 0;
  double lse_error_ = 0;  // of what the kernels are given, root mean square
};

}  // namespace tessera::testing
