// tessera attend: exact attention over the q, k, v of a file, on all ranks.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <optional>

#include "absl/cleanup/cleanup.h"
#include "collectives/agreement.h"
#include "launcher/command.h"
#include "launcher/host.h"
#include "launcher/output_file.h"
#include "launcher/problem_flags.h"
#include "launcher/progress.h"
#include "launcher/run_plan.h"
#include "launcher/table.h"
#include "partition/print.h"

namespace tessera::launcher {
namespace {

struct Flags {
  ProblemFlags problem;
  ExecutionFlags execution;
  std::string input;
  std::string output;
  std::string trace;
  int64_t verify_rows = 0;
};

struct Prepared {
  std::unique_ptr<FileInput> input;
  Problem problem;
};

StatusOr<Prepared> Prepare(const Flags& flags) {
  TESSERA_ASSIGN_OR_RETURN(SafetensorsFile file, SafetensorsFile::Open(flags.input));
  Prepared prepared;
  prepared.input = std::make_unique<FileInput>(std::move(file));
  TESSERA_ASSIGN_OR_RETURN(prepared.problem, prepared.input->ShapeOfProblem());
  TESSERA_RETURN_IF_ERROR(CompleteProblem(flags.problem, prepared.problem));
  TESSERA_RETURN_IF_ERROR(CheckDistinct({{"--input", flags.input}, {"--mask", DocumentsFile(flags.problem.mask)}},
                                        {{"--output", flags.output}, {"--trace", flags.trace}}));
  if (!flags.output.empty()) TESSERA_RETURN_IF_ERROR(SafetensorsWriter::CheckWritable(flags.output));
  if (!flags.trace.empty()) TESSERA_RETURN_IF_ERROR(SafetensorsWriter::CheckWritable(flags.trace));
  return prepared;
}

Table MakeTable() {
  return Table({"strategy", "plan", "kernel", "seconds", "bytes counted", "predicted", "max abs error", "(plain)",
                "rel error", "(plain)", "LSE error", "check"});
}

void AddRow(Table& table, const Candidate& candidate, const RunReport& report, const Verdict& verdict,
            const std::optional<Truth>& truth) {
  const Errors& errors = verdict.errors;
  const auto error = [&](double value) { return verdict.checked ? FormatError(value) : std::string("-"); };
  const Errors plain = truth ? truth->plain : Errors{};
  table.Add({Label(candidate), candidate.spec->mesh.ToString(), report.kernel, FormatSeconds(report.seconds),
             absl::StrCat(report.bytes_counted), absl::StrCat(report.bytes_predicted), error(errors.max_absolute),
             error(plain.max_absolute), error(errors.relative), error(plain.relative), error(errors.lse_relative),
             Describe(verdict)});
}

StatusOr<bool> Attend(const Flags& flags, const Context& context) {
  Communicator& world = *context.world;
  Progress progress(context.root());
  progress.Say("reading headers");
  StatusOr<Prepared> prepared = Prepare(flags);
  TESSERA_RETURN_IF_ERROR(AgreeOnStatus(world, prepared.status(), "checking the input"));
  const Problem& problem = prepared->problem;
  const std::vector<Candidate> candidates =
      ResolveStrategies(problem, flags.execution.strategy, world.size(), context.RanksPerNode(world.size()));
  TESSERA_RETURN_IF_ERROR(AgreeOnStatus(world, AnyUsable(candidates), "choosing a strategy"));

  RunOptions options;
  options.device = flags.execution.device;
  options.kernel = context.Kernel(flags.execution.kernel);
  options.threads = context.Threads(flags.execution.threads);
  options.trace = !flags.trace.empty();
  // The CPU's kernels compute the truth and the plain error, whatever computes the result.
  const std::string cpu_kernel = options.device == Device::kCpu ? options.kernel : "";
  TESSERA_RETURN_IF_ERROR(AgreeOnStatus(world, CheckKernel(problem, cpu_kernel), "choosing a kernel"));

  const std::vector<int64_t> rows = SampleRows(problem.query_tokens, flags.verify_rows);
  std::optional<Truth> truth;
  Status status;
  if (context.root() && !rows.empty()) {
    progress.Say(absl::StrCat("recomputing ", rows.size(), " rows in fp64"));
    StatusOr<Truth> computed = ComputeTruth(problem, *prepared->input, rows, cpu_kernel, UsableCores());
    status = computed.status();
    if (computed.ok()) truth = *std::move(computed);
  }
  TESSERA_RETURN_IF_ERROR(AgreeOnStatus(world, status, "recomputing sampled rows in fp64"));
  if (context.root()) {
    std::printf("%s, %d ranks of %d threads%s\n", problem.ToString().c_str(), world.size(), options.threads,
                rows.empty() ? "" : absl::StrCat(", ", rows.size(), " rows against fp64").c_str());
  }

  Table table = MakeTable();
  // Rows that were measured are shown even when a later one fails.
  const absl::Cleanup print = [&] {
    if (context.root() && !table.empty()) std::fputs(table.ToString().c_str(), stdout);
    std::fflush(stdout);  // an abort does not
  };
  bool passed = true;
  for (const Candidate& candidate : candidates) {
    if (!candidate.spec.ok()) {
      table.Add({candidate.strategy, "refused: " + std::string(candidate.spec.status().message())});
      continue;
    }
    progress.Say("running " + candidate.strategy);
    TESSERA_ASSIGN_OR_RETURN(const RunResult result, RunPlan(world, *candidate.spec, *prepared->input, options));
    TESSERA_ASSIGN_OR_RETURN(const Verdict verdict,
                             Judge(world, *candidate.spec, result, rows, truth ? &*truth : nullptr,
                                   std::max(UsableCores(), world.size() * options.threads)));
    AddRow(table, candidate, result.report, verdict, truth);
    passed = passed && verdict.ok();
    if (!flags.trace.empty()) TESSERA_RETURN_IF_ERROR(WriteTrace(world, result.trace, flags.trace));
    // A result known to be wrong is not worth replacing a file for.
    if (!flags.output.empty() && verdict.ok()) {
      progress.Say("writing " + flags.output);
      TESSERA_RETURN_IF_ERROR(WriteResult(world, *candidate.spec, result, flags.output));
    }
  }
  return passed;
}

}  // namespace

void AddAttendCommand(CLI::App& app, Selection& selection) {
  const auto flags = std::make_shared<Flags>();
  CLI::App* command = app.add_subcommand("attend", "exact attention over tensors of a safetensors file");
  command->add_option("--input", flags->input, "safetensors file with q [S, H, D], k and v")->required();
  command->add_option("--output", flags->output, "file to write out [S, H, Dv] and lse [S, H] to");
  command
      ->add_option("--verify", flags->verify_rows,
                   "recompute this many sampled rows in fp64 and compare: the relative (L2) error may be twice\n"
                   "that of a plain single-device run (or 4 x 2^-24), the maximum error twice plus one rounding\n"
                   "of the dtype at the largest magnitude")
      ->check(CLI::Range(int64_t{1}, kMostTokens));
  command->add_option("--trace", flags->trace, "file to write a Chrome trace of the run to");
  AddMaskFlags(*command, flags->problem);
  AddStrategyFlag(*command, flags->execution);
  AddExecutionFlags(*command, flags->execution);
  AddDeviceFlag(*command, flags->execution);
  command->footer(
      "Examples:\n"
      "  mpirun -n 4 tessera attend --input qkv.safetensors --output out.safetensors\n"
      "  mpirun -n 4 tessera attend --input qkv.safetensors --verify 64 --strategy all\n"
      "  mpirun -n 8 tessera attend --input qkv.safetensors --output out.safetensors --mask window:4096 \\\n"
      "      --strategy grid:2x4 --trace run.trace.json");
  command->callback([flags, &selection] {
    if (flags->output.empty() && flags->verify_rows == 0) {
      throw CLI::ValidationError("attend", "needs --output, --verify or both");
    }
    if (flags->execution.strategy == "all" && (!flags->output.empty() || !flags->trace.empty())) {
      throw CLI::ValidationError("attend", "--strategy all compares strategies; --output and --trace need one of them");
    }
    if (!flags->trace.empty() && flags->execution.device == Device::kCuda) {
      throw CLI::ValidationError("attend", "--trace records the steps of CPUs; with --device cuda there is none");
    }
    selection = {[flags](const Context& context) { return Attend(*flags, context); }, flags->execution.deadline_seconds,
                 /*needs_ranks=*/true};
  });
}

}  // namespace tessera::launcher
