// From a problem and a strategy name to a plan. Pure: every rank computes the same plan without talking.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "partition/plan.h"
#include "runtime/base/status.h"

namespace tessera {

// Strategy names: "ring", "zigzag", "striped", "balanced" (rings over those layouts), "allgather", "ulysses",
// "grid:HxS" (H head ranks, S sequence ranks; "grid" picks H), "double-ring[:NODES]", "tree", "auto".
// Layouts: ring, ulysses, tree, double-ring and grid use zigzag when the mask is triangular only where the name says
// so; see docs/communication.md.
struct PlanOptions {
  std::string strategy = "auto";
  int ranks = 1;
  int ranks_per_node = 0;  // for double-ring without :NODES; 0 = unknown
  Pass pass = Pass::kForward;
};

// The names `auto` and "all" range over, for `ranks` ranks, in a fixed order.
std::vector<std::string> StrategyNames(int ranks);

// Resolves the strategy to mesh, layouts and method. InvalidArgument names the strategy, why it cannot serve the
// problem and one that can.
StatusOr<PlanSpec> MakePlanSpec(const Problem& problem, const PlanOptions& options);

// The programs of all ranks, or of one rank (what execution uses).
Plan BuildPlan(const PlanSpec& spec);
RankProgram BuildRankProgram(const PlanSpec& spec, int rank);

}  // namespace tessera
