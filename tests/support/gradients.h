// Runs a backward pass as one rank and judges whole gradients against fp64.
#pragma once

#include <string>
#include <vector>

#include "tests/support/distributed.h"
#include "tests/support/local_tensors.h"

namespace tessera::testing {

using OutputGradient = std::vector<std::byte>;  // [Sq, H, Dv] in the problem's dtype
OutputGradient RandomOutputGradient(const Problem& problem, std::mt19937_64& generator);

// Gradients over the whole sequences, in the problem's dtype widened.
struct Gradients {
  std::vector<double> query, key, value, sink;
};
Gradients EmptyGradients(const Problem& problem);  // filled with NaN: a row nobody wrote is seen

// Forward, then backward, of this rank's part, with poisoned memory around every local tensor. The sink gradient is
// taken from rank 0.
Status RunRankBackward(Communicator& comm, const PlanSpec& spec, const Tensors& tensors,
                       const OutputGradient& output_gradient, Gradients& gradients, ExecutionStats* stats = nullptr);

// The fp64 gradients of a problem and the errors of a plain fp32-arithmetic backward with tensors in the problem's
// dtype.
class GradientJudge {
 public:
  // `weights`: the type that the plain backward rounds weights to before it multiplies them with tensors.
  GradientJudge(const Problem& problem, const Tensors& tensors, const OutputGradient& output_gradient, DType weights);
  GradientJudge(const Problem& problem, const Tensors& tensors, const OutputGradient& output_gradient)
      : GradientJudge(problem, tensors, output_gradient, CpuWeightType(problem.dtype)) {}
  // Each gradient by itself: root mean square and maximum error at most twice the plain one's, plus one rounding of the
  // dtype at the largest magnitude and two fp32 roundings at the largest sum of absolute terms (terms cancel, and a
  // plain run of few elements can be exact by luck); in 16-bit weights, also half a rounding at the largest root of
  // squared terms. Problems in fp64: 1e-12 of those magnitudes, but the sink's gradient is fp32. Empty when all hold.
  std::string Judge(const Gradients& gradients) const;

 private:
  struct Yardstick {
    std::vector<double> exact;
    double rms = 0, max = 0, floor = 0;
  };
  Yardstick query_, key_, value_, sink_;
};

}  // namespace tessera::testing
