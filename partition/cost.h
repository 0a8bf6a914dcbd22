// What a plan costs: exact counts from its steps, closed forms to hold them against, and a simulated price.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "partition/decode.h"
#include "partition/plan.h"

namespace tessera {

struct RankCost {
  int64_t bytes_sent = 0;
  int64_t bytes_received = 0;
  int64_t messages_sent = 0;  // point-to-point sends, and one per peer with bytes in an exchange
  int64_t messages_received = 0;
  double flops = 0;        // 2 * attended pairs * (qk_width + v_width); backward 2 * pairs * (3 qk_width + 2 v_width)
  double pairs = 0;        // attended (query, key, head) triples
  int64_t slot_bytes = 0;  // memory the executor allocates
  friend bool operator==(const RankCost&, const RankCost&) = default;
};
RankCost CountProgram(const PlanSpec& spec, const RankProgram& program);

struct PlanCost {
  std::vector<RankCost> ranks;
  RankCost Max() const;
  RankCost Total() const;
};
PlanCost CountPlan(const Plan& plan);
// Messages and memory; how much is attended is the cache's matter, not the plan's, so flops and pairs stay 0.
PlanCost CountPlan(const DecodePlan& plan);

// Total bytes received over all ranks, from the problem, mesh and layouts alone (no steps): the closed form.
// ring, double ring, all-gather: every key/value row once per other sequence rank that attends it; head exchange: every
// row-head once per head rank that is not its owner; tree: queries down and fp32 partials up. Backward, what attends
// includes output gradient, log-sum-exp and delta, and fp32 gradients of keys and values go back as the rows came. See
// docs/communication.md.
int64_t PredictedBytes(const PlanSpec& spec);
// Of a decode step: head, tpla: none; gather-query: every query head once per other rank, and of the fp32 partials
// every head once per rank that is not its owner; replicated-query: the latter; tree: partials up and the result down
// each edge.
int64_t PredictedBytes(const DecodeSpec& spec);

// Machine rates a price is computed from. Defaults are a laptop's; `tessera bench` prints measured ones.
struct MachineModel {
  double flops_per_second = 1e11;      // one rank's attention rate
  double link_latency_seconds = 2e-6;  // per message within a node
  double link_bytes_per_second = 5e9;
  double node_latency_seconds = 10e-6;  // between nodes
  double node_bytes_per_second = 1e10;
  double step_overhead_seconds = 1e-6;
  int ranks_per_node = 0;                     // 0 = all ranks on one node
  double memory_bytes_per_second = 1e10;      // one rank's rate of reading its cache and its weights
  double projection_flops_per_second = 1e11;  // one rank's rate of dense products of a few rows
};

struct TimedStep {
  double start_seconds = 0;
  double end_seconds = 0;
};
struct Price {
  double seconds = 0;                            // simulated makespan, labelled predicted wherever printed
  double compute_seconds = 0;                    // busiest rank's compute
  double exposed_communication_seconds = 0;      // makespan minus busiest compute
  std::vector<std::vector<TimedStep>> timeline;  // per rank, per step
};
// Discrete-event simulation of all ranks with overlap, one compute unit and one sending link per rank.
Price Simulate(const Plan& plan, const MachineModel& machine);
// The same of a decode step, whose ranks attend to their caches in `attend_seconds`, one entry per rank.
Price Simulate(const DecodePlan& plan, const MachineModel& machine, std::span<const double> attend_seconds);

// A closed-form estimate for any number of ranks (to 65,536) that needs no programs; used by "auto".
double EstimateSeconds(const PlanSpec& spec, const MachineModel& machine);

}  // namespace tessera
