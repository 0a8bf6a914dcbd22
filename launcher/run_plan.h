// Runs one plan on a communicator and measures it.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "collectives/communicator.h"
#include "launcher/input_source.h"
#include "launcher/pass_runner.h"
#include "launcher/truth.h"
#include "partition/plan.h"
#include "runtime/engine/trace.h"

namespace tessera::launcher {

struct RunOptions {
  Device device = Device::kCpu;
  std::string kernel;
  int threads = 1;
  int repeats = 1;
  bool trace = false;
  bool backward = false;  // also run and measure the backward pass, after each forward pass
  // Query rows whose output gradient is not zero; empty: all. See launcher/gradient_truth.h.
  std::vector<int64_t> gradient_rows;
};

// Over all ranks of the communicator; the same on each.
struct RunReport {
  double seconds = 0;  // median over repeats of the slowest rank
  // Unknown on GPUs, where the host does not see them.
  std::optional<double> compute_seconds;  // busiest rank, in the median repeat
  std::optional<double> overlap;          // share of the slowest rank's time in which communication was not waited for
  int64_t bytes_counted = 0;              // received, one execution, sum over ranks
  int64_t bytes_predicted = 0;
  int64_t slot_bytes = 0;  // largest over ranks
  int64_t peak_bytes = 0;  // largest growth of resident memory over ranks, inputs included; -1 = unknown
  double flops = 0;
  std::string kernel;
  std::string device;  // the GPU; empty = CPU
};

// This rank's gradients.
struct BackwardResult {
  RunReport report;  // of the backward pass alone; peak_bytes is that of both
  HostTensor query_gradient, key_gradient, value_gradient;
};

// This rank's results.
struct RunResult {
  RunReport report;
  HostTensor output;
  HostTensor lse;
  Trace trace;  // of the last pass
  std::optional<BackwardResult> backward;
};

// Collective. Errors are agreed, unless the communicator itself failed.
StatusOr<RunResult> RunPlan(Communicator& comm, const PlanSpec& spec, const InputSource& input,
                            const RunOptions& options);

struct Verdict {
  bool checked = false;  // against fp64
  Errors errors;
  bool accurate = true;
  bool bytes_match = true;
  bool plausible = true;
  bool ok() const { return accurate && bytes_match && plausible; }
};

// What can be said without comparing results.
Verdict JudgeReport(const Problem& problem, const RunReport& report, int cores);

// Collective. `truth` is used on rank 0 only and may be null there when nothing is to be verified (`rows` is empty).
StatusOr<Verdict> Judge(Communicator& comm, const PlanSpec& spec, const RunResult& result,
                        const std::vector<int64_t>& rows, const Truth* truth, int cores);

// "ok", or what is wrong in a few words.
std::string Describe(const Verdict& verdict);

}  // namespace tessera::launcher
