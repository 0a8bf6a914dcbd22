// tessera bench scaling: one problem on 1, 2, ... P ranks inside one job, every result checked.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <optional>

#include "absl/cleanup/cleanup.h"
#include "collectives/agreement.h"
#include "launcher/command.h"
#include "launcher/gradient_truth.h"
#include "launcher/host.h"
#include "launcher/output_file.h"
#include "launcher/problem_flags.h"
#include "launcher/progress.h"
#include "launcher/record.h"
#include "launcher/run_plan.h"
#include "launcher/table.h"

namespace tessera::launcher {
namespace {

struct Flags {
  ProblemFlags problem;
  ExecutionFlags execution;
  std::string json;
  int repeats = 3;
  int64_t verify_rows = 32;
  uint64_t seed = 1;
  std::vector<int> rank_counts;  // empty = powers of two and all
  bool every_rank_count = false;
  bool backward = false;
};

// The counts asked for; by default 1, 2, 4, ... and the job's own size.
StatusOr<std::vector<int>> RankCounts(const Flags& flags, int ranks) {
  if (!flags.rank_counts.empty()) {
    for (const int count : flags.rank_counts) {
      if (count < 1 || count > ranks) {
        return absl::InvalidArgumentError(absl::StrCat("--ranks ", count, "; allowed: 1 to ", ranks, ", as started"));
      }
    }
    return flags.rank_counts;
  }
  std::vector<int> counts;
  for (int n = 1; n < ranks; n = flags.every_rank_count ? n + 1 : 2 * n) counts.push_back(n);
  counts.push_back(ranks);
  return counts;
}

// Rows of the table and lines of the record file; filled on rank 0.
class Report {
 public:
  explicit Report(int ranks)
      : table_({"ranks", "strategy", "seconds", "TFLOP/s", "speed-up", "efficiency", "bytes counted", "predicted",
                "peak of run", "slots", "overlap", "rel error", "(plain)", "kernel", "check"}),
        last_(ranks) {}

  void Add(const BenchSample& sample, const PlanSpec& spec) {
    const RunReport& report = sample.report;
    device_ = report.device;
    double& one_rank_seconds = one_rank_seconds_[static_cast<int>(spec.pass)];
    if (sample.ranks == 1 && one_rank_seconds == 0) one_rank_seconds = report.seconds;
    const double speed_up = report.seconds > 0 ? one_rank_seconds / report.seconds : 0;
    const bool checked = sample.verdict.checked;
    table_.Add({absl::StrCat(sample.ranks), sample.strategy + (spec.pass == Pass::kBackward ? ", backward" : ""),
                absl::StrFormat("%.3f", report.seconds),
                absl::StrFormat("%.4f", report.seconds > 0 ? report.flops / report.seconds / 1e12 : 0),
                speed_up > 0 ? absl::StrFormat("%.2f", speed_up) : "-",
                speed_up > 0 ? absl::StrFormat("%.0f%%", 100 * speed_up / sample.ranks) : "-",
                absl::StrCat(report.bytes_counted), absl::StrCat(report.bytes_predicted),
                report.peak_bytes < 0 ? "unknown" : FormatBytes(static_cast<double>(report.peak_bytes)),
                FormatBytes(static_cast<double>(report.slot_bytes)),
                report.overlap ? absl::StrFormat("%.0f%%", 100 * *report.overlap) : "unknown",
                checked ? FormatError(sample.verdict.errors.relative) : "-",
                checked ? FormatError(sample.plain.relative) : "-", report.kernel, Describe(sample.verdict)});
    records_ += ToJsonLine(sample, spec) + "\n";
  }

  void AddRefusal(int ranks, const Candidate& candidate) {
    refusals_ += absl::StrCat("  ", ranks, " ranks: ", std::string(candidate.spec.status().message()), "\n");
  }

  // An existing file is replaced only now, when there is something to replace it with.
  Status WriteRecords(const std::string& path) const {
    return path.empty() ? absl::OkStatus() : WriteAside(path, records_);
  }

  void Print() const {
    if (!table_.empty()) std::fputs(table_.ToString().c_str(), stdout);
    if (!refusals_.empty()) std::printf("not run:\n%s", refusals_.c_str());
    if (!device_.empty()) std::printf("computed on: %s\n", device_.c_str());
    if (last_ > UsableCores()) {
      std::printf("%d ranks share %d cores: speed-up beyond %d is not to be expected.\n", last_, UsableCores(),
                  UsableCores());
    }
    std::fflush(stdout);  // an abort does not
  }

 private:
  Table table_;
  std::string refusals_;
  std::string records_;
  double one_rank_seconds_[2] = {0, 0};  // by pass
  int last_ = 1;
  std::string device_;  // the GPU of rank 0; empty = CPU
};

// Whether the records could be written, asked before anything is measured.
Status CheckRecordFile(const Flags& flags) {
  if (flags.json.empty()) return absl::OkStatus();
  TESSERA_RETURN_IF_ERROR(CheckDistinct({{"--mask", DocumentsFile(flags.problem.mask)}}, {{"--json", flags.json}}));
  return SafetensorsWriter::CheckWritable(flags.json);
}

// Everything the runs of one job have in common.
struct Bench {
  const Flags& flags;
  const Problem& problem;
  GeneratedInput input;
  std::vector<int64_t> rows;
  std::optional<Truth> truth;                   // on rank 0
  std::optional<GradientTruth> gradient_truth;  // on rank 0, with the backward pass
  RunOptions options;
  bool passed = true;
  bool any = false;
};

Status ReportBackward(Communicator& comm, const Candidate& candidate, const BackwardResult& result, Bench& bench,
                      Report& report) {
  PlanSpec spec = *candidate.spec;
  spec.pass = Pass::kBackward;
  Errors plain;
  TESSERA_ASSIGN_OR_RETURN(
      const Verdict verdict,
      JudgeGradients(comm, spec, result, bench.rows, bench.gradient_truth ? &*bench.gradient_truth : nullptr,
                     std::max(UsableCores(), comm.size() * bench.options.threads), &plain));
  if (comm.rank() == 0) {
    report.Add({Label(candidate), comm.size(), bench.options.threads, result.report, verdict, plain}, spec);
  }
  bench.passed = bench.passed && verdict.ok();
  return absl::OkStatus();
}

// All strategies on one communicator.
Status RunRankCount(Communicator& comm, Bench& bench, int ranks_per_node, Report& report, Progress& progress) {
  std::vector<Candidate> candidates =
      ResolveStrategies(bench.problem, bench.flags.execution.strategy, comm.size(), ranks_per_node);
  if (comm.size() == 1) {
    // On one rank every strategy is the same local computation: one row is the baseline of all.
    const auto first = std::ranges::find_if(candidates, [](const Candidate& c) { return c.spec.ok(); });
    if (first != candidates.end()) candidates = {*first};
  }
  for (const Candidate& candidate : candidates) {
    if (!candidate.spec.ok()) {
      report.AddRefusal(comm.size(), candidate);
      continue;
    }
    progress.Say(absl::StrCat(comm.size(), " ranks, ", candidate.strategy));
    TESSERA_ASSIGN_OR_RETURN(const RunResult result, RunPlan(comm, *candidate.spec, bench.input, bench.options));
    TESSERA_ASSIGN_OR_RETURN(const Verdict verdict,
                             Judge(comm, *candidate.spec, result, bench.rows, bench.truth ? &*bench.truth : nullptr,
                                   std::max(UsableCores(), comm.size() * bench.options.threads)));
    if (comm.rank() == 0) {
      report.Add({Label(candidate), comm.size(), bench.options.threads, result.report, verdict,
                  bench.truth ? bench.truth->plain : Errors{}},
                 *candidate.spec);
    }
    bench.passed = bench.passed && verdict.ok();
    if (result.backward) {
      TESSERA_RETURN_IF_ERROR(ReportBackward(comm, candidate, *result.backward, bench, report));
    }
    bench.any = true;
  }
  return absl::OkStatus();
}

StatusOr<bool> Scaling(const Flags& flags, const Context& context) {
  Communicator& world = *context.world;
  Progress progress(context.root());
  Report report(world.size());
  const StatusOr<Problem> problem = MakeProblem(flags.problem);
  TESSERA_RETURN_IF_ERROR(AgreeOnStatus(world, problem.status(), "checking the problem"));
  const StatusOr<std::vector<int>> rank_counts = RankCounts(flags, world.size());
  TESSERA_RETURN_IF_ERROR(AgreeOnStatus(world, rank_counts.status(), "checking the rank counts"));
  TESSERA_RETURN_IF_ERROR(
      AgreeOnStatus(world, context.root() ? CheckRecordFile(flags) : absl::OkStatus(), "checking the record file"));

  Bench bench{flags, *problem, GeneratedInput(flags.seed), SampleRows(problem->query_tokens, flags.verify_rows), {},
              {},    {}};
  bench.options.device = flags.execution.device;
  bench.options.kernel = context.Kernel(flags.execution.kernel);
  bench.options.threads = context.Threads(flags.execution.threads);
  bench.options.repeats = flags.repeats;
  bench.options.backward = flags.backward;
  bench.options.gradient_rows = bench.rows;
  // The CPU's kernels compute the truth and the plain error, whatever computes the result.
  const std::string cpu_kernel = bench.options.device == Device::kCpu ? bench.options.kernel : "";
  TESSERA_RETURN_IF_ERROR(AgreeOnStatus(world, CheckKernel(*problem, cpu_kernel), "choosing a kernel"));
  Status status;
  if (context.root() && !bench.rows.empty()) {
    progress.Say(absl::StrCat("recomputing ", bench.rows.size(), " rows in fp64"));
    StatusOr<Truth> truth = ComputeTruth(*problem, bench.input, bench.rows, cpu_kernel, UsableCores());
    status = truth.status();
    if (truth.ok()) bench.truth = *std::move(truth);
    if (truth.ok() && flags.backward) {
      StatusOr<GradientTruth> gradients =
          ComputeGradientTruth(*problem, bench.input, bench.rows, cpu_kernel, UsableCores());
      status = gradients.status();
      if (gradients.ok()) bench.gradient_truth = *std::move(gradients);
    }
  }
  TESSERA_RETURN_IF_ERROR(AgreeOnStatus(world, status, "recomputing sampled rows in fp64"));
  if (context.root()) {
    std::printf("%s, %d threads per rank, median of %d, %zu rows against fp64\n", problem->ToString().c_str(),
                bench.options.threads, flags.repeats, bench.rows.size());
  }
  // Rows that were measured are shown even when a later one fails.
  const absl::Cleanup print = [&] {
    if (context.root()) report.Print();
  };
  for (const int ranks : *rank_counts) {
    const bool member = world.rank() < ranks;
    TESSERA_ASSIGN_OR_RETURN(const std::unique_ptr<Communicator> comm, world.Split(member ? 0 : -1, world.rank()));
    if (member) status = RunRankCount(*comm, bench, context.RanksPerNode(ranks), report, progress);
    TESSERA_RETURN_IF_ERROR(AgreeOnStatus(world, IsAgreed(status) ? Status(status.code(), status.message()) : status,
                                          "running on fewer ranks"));
  }
  TESSERA_ASSIGN_OR_RETURN(const std::vector<int> passed,
                           AllGatherValue(world, bench.passed && bench.any ? 1 : 0, "agreeing on the result"));
  if (context.root()) {
    status = bench.any ? report.WriteRecords(flags.json)
                       : absl::FailedPreconditionError("no strategy could serve any of the rank counts");
  }
  TESSERA_RETURN_IF_ERROR(AgreeOnStatus(world, status, "writing the record file"));
  return passed[0] != 0;
}

}  // namespace

void AddBenchCommand(CLI::App& app, Selection& selection) {
  CLI::App* bench = app.add_subcommand("bench", "measurements, each checked for correctness");
  bench->require_subcommand(1);
  AddScalingBench(*bench, selection);
  AddDecodeBench(*bench, selection);
  AddKernelBench(*bench, selection);
}

void AddScalingBench(CLI::App& bench, Selection& selection) {
  const auto flags = std::make_shared<Flags>();
  CLI::App* command = bench.add_subcommand("scaling", "one problem on 1, 2, 4, ... P ranks of this job");
  AddShapeFlags(*command, flags->problem);
  AddMaskFlags(*command, flags->problem);
  AddStrategyFlag(*command, flags->execution);
  AddExecutionFlags(*command, flags->execution);
  AddDeviceFlag(*command, flags->execution);
  command->add_flag("--backward", flags->backward,
                    "also measure the backward pass, in a row of its own whose error is the largest of dq, dk and dv");
  command->add_option("--repeat", flags->repeats, "executions per row, of which the median counts")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000));
  command->add_option("--verify", flags->verify_rows, "rows to recompute in fp64; 0 = none")
      ->capture_default_str()
      ->check(CLI::Range(int64_t{0}, kMostTokens));
  command->add_option("--seed", flags->seed, "seed of the generated tensors")->capture_default_str();
  command->add_option("--json", flags->json,
                      "file to write one JSON record per row to; it is replaced when all rows are measured");
  CLI::Option* counts =
      command->add_option("--ranks", flags->rank_counts, "rank counts to run, as 1,2,8")->delimiter(',');
  command->add_flag("--every-rank-count", flags->every_rank_count, "run 1, 2, 3, ... P ranks")->excludes(counts);
  command->footer(
      "\"peak of run\" is the largest growth of a rank's resident memory from before its tensors are loaded to the "
      "end\n"
      "of the run; the fp64 recomputation on rank 0, which holds all keys and values, is over by then and not in it.\n"
      "Examples:\n"
      "  mpirun -n 4 tessera bench scaling --seq 32768 --strategy all\n"
      "  mpirun -n 2 tessera bench scaling --seq 8192 --dtype bf16 --strategy zigzag --backward\n"
      "  mpirun -n 8 tessera bench scaling --seq 131072 --heads 32 --kv-heads 8 --dim 128 --strategy zigzag \\\n"
      "      --mask causal --dtype bf16 --json scaling.jsonl");
  command->callback([flags, &selection] {
    selection = {[flags](const Context& context) { return Scaling(*flags, context); },
                 flags->execution.deadline_seconds, /*needs_ranks=*/true};
  });
}

}  // namespace tessera::launcher
