// Plans attention over four ranks with the installed headers and libraries, and asks the kernels what they can do.
#include <cstdio>

#include "kernels/attention.h"
#include "partition/planner.h"
#include "runtime/engine/attention.h"

int main() {
  tessera::Problem problem;
  problem.query_tokens = problem.key_tokens = 1000;
  problem.qk_width = problem.v_width = 64;
  const auto mask = tessera::Mask::Causal(1000, 1000);
  if (!mask.ok()) return 1;
  problem.mask = *mask;
  const auto spec = tessera::MakePlanSpec(problem, {.strategy = "zigzag", .ranks = 4});
  if (!spec.ok()) {
    std::fprintf(stderr, "%s\n", spec.status().ToString().c_str());
    return 1;
  }
  const tessera::RankProgram program = tessera::BuildRankProgram(*spec, 0);
  std::printf("%zu steps, %zu kernels\n", program.steps.size(), tessera::AttentionKernels().size());
  return program.steps.empty() || tessera::AttentionKernels().empty() ? 1 : 0;
}
