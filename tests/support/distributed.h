// Runs a problem as one rank of a distributed attention and judges whole results against fp64.
#pragma once

#include <string>
#include <vector>

#include "collectives/communicator.h"
#include "partition/plan.h"
#include "runtime/engine/attention.h"
#include "tests/support/problems.h"

namespace tessera::testing {

// A result over the whole sequence: output [Sq, H, Dv] in the problem's dtype widened, lse [Sq, H].
struct Result {
  std::vector<double> output;
  std::vector<double> lse;
};
Result EmptyResult(const Problem& problem);  // filled with NaN: a row nobody wrote is seen

// Runs this rank's part with poisoned (NaN) memory around every local tensor, checks that the poison is untouched and
// scatters the local rows into `result` (rows of other ranks are not touched, so ranks as threads may share it).
Status RunRank(Communicator& comm, const PlanSpec& spec, const Tensors& tensors, const AttentionOptions& options,
               Result& result, ExecutionStats* stats = nullptr);

// Straightforward softmax in fp32 arithmetic with inputs and output in the problem's dtype: the yardstick. In bf16 the
// weights are rounded too before they meet the values (RoundWeight).
Result Plain(const Problem& problem, const Tensors& tensors);

// Holds `result` against fp64: root mean square and maximum error of the output at most twice those of `Plain`, plus
// one rounding of the dtype at the largest magnitude (a plain run of few elements can be exact by luck); lse within
// 1e-5. Problems in fp64: output and lse within 1e-12. Empty when it holds, otherwise what does not.
std::string Judge(const Problem& problem, const Tensors& tensors, const Result& result);

}  // namespace tessera::testing
