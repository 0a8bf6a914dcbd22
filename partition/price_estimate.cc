// EstimateSeconds: what Simulate would say, from sums over ranks instead of steps.
#include <algorithm>
#include <bit>

#include "partition/cost.h"
#include "partition/cost_shares.h"
#include "partition/price_links.h"

namespace tessera {
namespace {

double Seconds(const Link& link, double messages, double bytes) {
  return messages * link.latency_seconds + bytes / link.bytes_per_second;
}

// The busiest sequence rank; ranks wait for each other, so it sets the pace.
struct Busiest {
  double pairs = 0;  // per head
  double query_rows = 0;
  double key_rows = 0;      // owned
  double foreign_rows = 0;  // key rows to fetch
};
Busiest BusiestOf(const PlanSpec& spec, const Shares& shares) {
  Busiest busiest;
  for (int s = 0; s < spec.mesh.sequence_ranks(); ++s) {
    const auto raise = [](double& most, double value) { most = std::max(most, value); };
    raise(busiest.pairs, shares.AttendedPairs(s));
    raise(busiest.query_rows, static_cast<double>(shares.QueryRows(s)));
    double keys = 0;
    for (int h = 0; h < spec.mesh.head_ranks; ++h) {
      keys += static_cast<double>(spec.key_layout.rows(spec.mesh.rank_of(s, h)));
    }
    raise(busiest.key_rows, keys);
    if (spec.method != SequenceMethod::kTree) {
      raise(busiest.foreign_rows, static_cast<double>(shares.ForeignKeyRows(s)));
    }
  }
  return busiest;
}

}  // namespace

double EstimateSeconds(const PlanSpec& spec, const MachineModel& machine) {
  const Shares shares(spec);
  const Mesh& mesh = spec.mesh;
  const Problem& problem = spec.problem;
  const Busiest busiest = BusiestOf(spec, shares);
  const bool backward = spec.pass == Pass::kBackward;
  const double kv_row_bytes = static_cast<double>(shares.kv_bytes() + shares.kv_gradient_bytes());
  double query_heads = 0, kv_heads = 0;
  for (int h = 0; h < mesh.head_ranks; ++h) {
    query_heads = std::max(query_heads, static_cast<double>(shares.query_heads(h)));
    kv_heads = std::max(kv_heads, static_cast<double>(shares.kv_heads(h)));
  }
  const double ranks = mesh.sequence_ranks();
  const double compute = busiest.pairs * query_heads * FlopsPerPair(spec) / machine.flops_per_second;

  double heads_seconds = 0;
  if (mesh.head_ranks > 1) {
    const double others = mesh.head_ranks - 1.0;
    const double bytes =
        others / mesh.head_ranks *
        (busiest.query_rows * query_heads * static_cast<double>(shares.query_bytes() + shares.result_bytes()) +
         busiest.key_rows * kv_heads * kv_row_bytes);
    // Query, key, value, result, log-sum-exp; backward also output gradient and delta, and three gradients return.
    const double tensors = backward ? 9 : 5;
    heads_seconds = Seconds(LinkBetween(machine, 0, mesh.head_ranks - 1), tensors * others, bytes);
  }
  if (mesh.sequence_ranks() == 1) return heads_seconds + compute + 3 * machine.step_overhead_seconds;

  // Within a ring all ranks move in step, so one slow hop slows every hop.
  const Link inner = LinkBetween(machine, 0, mesh.rank_of(mesh.inner_ranks - 1, 0));
  const Link outer = LinkBetween(machine, 0, mesh.size() - 1);
  const double kv_bytes = busiest.foreign_rows * kv_heads * kv_row_bytes;
  switch (spec.method) {
    case SequenceMethod::kRing: {
      const double outer_share = mesh.outer_ranks > 1 ? (mesh.outer_ranks - 1.0) / (ranks - 1) : 0;
      const double hops = std::min(ranks - 1, busiest.foreign_rows);
      const double tensors = backward ? 4 : 2;  // key, value; backward their gradients
      const double communication = Seconds(inner, tensors * hops * (1 - outer_share), kv_bytes * (1 - outer_share)) +
                                   Seconds(outer, tensors * hops * outer_share, kv_bytes * outer_share);
      // A block is attended while the next one arrives; only the last has nothing to hide behind.
      return heads_seconds + std::max(compute, communication + compute / ranks) +
             3 * ranks * machine.step_overhead_seconds;
    }
    case SequenceMethod::kAllGather: {
      const double communication = Seconds(outer, (backward ? 4 : 2) * (ranks - 1), kv_bytes);
      return heads_seconds + std::max(compute, communication + compute * (ranks - 1) / ranks) +
             5 * machine.step_overhead_seconds;
    }
    case SequenceMethod::kTree: {
      const double depth = std::bit_width(static_cast<unsigned>(mesh.sequence_ranks() - 1));
      const double bytes =
          busiest.query_rows * query_heads * static_cast<double>(shares.query_bytes() + shares.partial_bytes());
      // Query down, output and log-sum-exp up; backward three more down and one gradient up.
      const double messages = backward ? 5 : 3;
      const double roots =
          problem.query_tokens < mesh.sequence_ranks() ? static_cast<double>(problem.query_tokens) : ranks;
      const double communication = roots * Seconds(outer, messages * depth, bytes * depth);
      return heads_seconds + compute + communication + roots * (depth + 3) * machine.step_overhead_seconds;
    }
  }
  return 0;
}

}  // namespace tessera
