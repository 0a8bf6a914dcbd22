#include "launcher/run_plan.h"

#include <algorithm>
#include <cstring>

#include "collectives/agreement.h"
#include "launcher/host.h"
#include "partition/cost.h"

namespace tessera::launcher {
namespace {

StatusOr<LocalTensors> Load(const PlanSpec& spec, int rank, const InputSource& input) {
  const Problem& problem = spec.problem;
  const int64_t query_rows = spec.query_layout.rows(rank);
  const int64_t key_rows = spec.key_layout.rows(rank);
  LocalTensors local;
  TESSERA_ASSIGN_OR_RETURN(local.query, AllocateOperand(problem, Operand::kQuery, query_rows));
  TESSERA_ASSIGN_OR_RETURN(local.key, AllocateOperand(problem, Operand::kKey, key_rows));
  TESSERA_ASSIGN_OR_RETURN(local.value, AllocateOperand(problem, Operand::kValue, key_rows));
  TESSERA_ASSIGN_OR_RETURN(local.output,
                           HostTensor::Allocate(problem.dtype, query_rows, problem.query_heads, problem.v_width));
  TESSERA_ASSIGN_OR_RETURN(local.lse,
                           HostTensor::Allocate(AccumulatorType(problem.dtype), query_rows, problem.query_heads, 1));
  TESSERA_RETURN_IF_ERROR(input.Read(Operand::kQuery, spec.query_layout.segments(rank), local.query.view()));
  TESSERA_RETURN_IF_ERROR(input.Read(Operand::kKey, spec.key_layout.segments(rank), local.key.view()));
  TESSERA_RETURN_IF_ERROR(input.Read(Operand::kValue, spec.key_layout.segments(rank), local.value.view()));
  return local;
}

Status LoadBackward(const PlanSpec& spec, int rank, const InputSource& input, const std::vector<int64_t>& gradient_rows,
                    LocalTensors& local) {
  const Problem& problem = spec.problem;
  const int64_t query_rows = spec.query_layout.rows(rank), key_rows = spec.key_layout.rows(rank);
  TESSERA_ASSIGN_OR_RETURN(local.output_gradient, AllocateOperand(problem, Operand::kOutputGradient, query_rows));
  TESSERA_ASSIGN_OR_RETURN(local.query_gradient, AllocateOperand(problem, Operand::kQuery, query_rows));
  TESSERA_ASSIGN_OR_RETURN(local.key_gradient, AllocateOperand(problem, Operand::kKey, key_rows));
  TESSERA_ASSIGN_OR_RETURN(local.value_gradient, AllocateOperand(problem, Operand::kValue, key_rows));
  const TensorView& all = local.output_gradient.view();
  if (gradient_rows.empty()) return input.Read(Operand::kOutputGradient, spec.query_layout.segments(rank), all);
  if (all.bytes() > 0) std::memset(all.data, 0, all.bytes());
  for (const OwnedSample& owned : OwnedSamples(spec.query_layout, rank, gradient_rows)) {
    const Segment row{gradient_rows[owned.sample], 1, 1};
    TESSERA_RETURN_IF_ERROR(
        input.Read(Operand::kOutputGradient, {&row, 1},
                   TensorView::Dense(all.At(owned.local_row, 0), all.dtype, 1, all.heads, all.width)));
  }
  return absl::OkStatus();
}

struct Repeat {
  double seconds = 0;
  std::vector<PassCost> ranks;
};

StatusOr<Repeat> Execute(Communicator& comm, PassRunner& runner, Pass pass) {
  TESSERA_ASSIGN_OR_RETURN(Request barrier, comm.Barrier());
  TESSERA_RETURN_IF_ERROR(Wait(comm, barrier, "the others to start"));
  const StatusOr<PassCost> mine = runner.Run(pass);
  // The executor ends idle; what follows may take long again.
  if (mine.ok()) comm.ReportProgress({RankState::kComputing, -1});
  TESSERA_RETURN_IF_ERROR(AgreeOnStatus(comm, mine.status(), "executing the plan"));
  Repeat repeat;
  TESSERA_ASSIGN_OR_RETURN(repeat.ranks, AllGatherValue(comm, *mine, "executing the plan"));
  for (const PassCost& cost : repeat.ranks) repeat.seconds = std::max(repeat.seconds, cost.seconds);
  return repeat;
}

RunReport Summarise(const PlanSpec& spec, std::vector<Repeat> repeats, const std::vector<int64_t>& peaks) {
  std::ranges::sort(repeats, {}, &Repeat::seconds);
  const Repeat& median = repeats[repeats.size() / 2];
  RunReport report;
  report.seconds = median.seconds;
  double compute_seconds = 0;
  for (const PassCost& cost : median.ranks) {
    compute_seconds = std::max(compute_seconds, cost.compute_seconds);
    report.bytes_counted += cost.bytes_received;
    report.slot_bytes = std::max(report.slot_bytes, cost.slot_bytes);
  }
  const PassCost& slowest = *std::ranges::max_element(median.ranks, {}, &PassCost::seconds);
  if (slowest.split_known) {
    report.compute_seconds = compute_seconds;
    report.overlap = slowest.seconds > 0 ? 1 - slowest.exposed_seconds / slowest.seconds : 1;
  }
  const auto [lowest, highest] = std::ranges::minmax_element(peaks);
  report.peak_bytes = *lowest < 0 ? -1 : *highest;
  report.bytes_predicted = PredictedBytes(spec);
  report.flops = spec.problem.Flops();
  if (spec.pass == Pass::kBackward) {  // five products instead of two
    const double qk = spec.problem.qk_width, v = spec.problem.v_width;
    report.flops *= (3 * qk + 2 * v) / (qk + v);
  }
  return report;
}

}  // namespace

StatusOr<RunResult> RunPlan(Communicator& comm, const PlanSpec& spec, const InputSource& input,
                            const RunOptions& options) {
  const bool peak_known = ResetPeakResident();
  const int64_t baseline = ResidentBytes();
  StatusOr<LocalTensors> loaded = Load(spec, comm.rank(), input);
  Status status = loaded.status();
  if (status.ok() && options.backward) {
    status = LoadBackward(spec, comm.rank(), input, options.gradient_rows, *loaded);
  }
  TESSERA_RETURN_IF_ERROR(AgreeOnStatus(comm, status, "loading tensors"));
  StatusOr<std::unique_ptr<PassRunner>> runner = MakePassRunner(
      comm, options.device, spec, *loaded, {options.kernel, options.threads, options.trace, options.backward});
  TESSERA_RETURN_IF_ERROR(AgreeOnStatus(comm, runner.status(), "preparing the run"));

  std::vector<Repeat> repeats, backward_repeats;
  for (int i = 0; i < options.repeats; ++i) {
    TESSERA_ASSIGN_OR_RETURN(Repeat repeat, Execute(comm, **runner, Pass::kForward));
    repeats.push_back(std::move(repeat));
    if (!options.backward) continue;
    TESSERA_ASSIGN_OR_RETURN(repeat, Execute(comm, **runner, Pass::kBackward));
    backward_repeats.push_back(std::move(repeat));
  }
  TESSERA_RETURN_IF_ERROR(AgreeOnStatus(comm, (*runner)->Fetch(), "fetching results"));
  const int64_t growth = peak_known ? std::max<int64_t>(0, PeakResidentBytes() - baseline) : -1;
  TESSERA_ASSIGN_OR_RETURN(const std::vector<int64_t> peaks, AllGatherValue(comm, growth, "executing the plan"));

  RunResult result{
      Summarise(spec, std::move(repeats), peaks), std::move(loaded->output), std::move(loaded->lse), {}, {}};
  result.report.kernel = (*runner)->kernel_name();
  result.report.device = (*runner)->device_name();
  if (options.trace) result.trace = (*runner)->trace();
  if (options.backward) {
    PlanSpec backward = spec;
    backward.pass = Pass::kBackward;
    result.backward =
        BackwardResult{Summarise(backward, std::move(backward_repeats), peaks), std::move(loaded->query_gradient),
                       std::move(loaded->key_gradient), std::move(loaded->value_gradient)};
    result.backward->report.kernel = result.report.kernel;
    result.backward->report.device = result.report.device;
  }
  return result;
}

Verdict JudgeReport(const Problem& problem, const RunReport& report, int cores) {
  Verdict verdict;
  verdict.bytes_match = report.bytes_counted == report.bytes_predicted;
  const bool half = SizeInBytes(problem.dtype) == 2;
  // What a GPU could do at most is not known here.
  verdict.plausible = !report.device.empty() || report.flops <= report.seconds * PlausiblePeakFlops(cores, half);
  return verdict;
}

StatusOr<Verdict> Judge(Communicator& comm, const PlanSpec& spec, const RunResult& result,
                        const std::vector<int64_t>& rows, const Truth* truth, int cores) {
  Verdict verdict = JudgeReport(spec.problem, result.report, cores);
  if (!rows.empty()) {
    TESSERA_ASSIGN_OR_RETURN(const SampledResult samples,
                             GatherSamples(comm, spec.query_layout, rows, result.output.view(), result.lse.view()));
    if (comm.rank() == 0 && truth != nullptr) {
      verdict.checked = true;
      verdict.errors = Compare(*truth, samples);
      verdict.accurate = Acceptable(verdict.errors, *truth, spec.problem.dtype);
    }
  }
  TESSERA_ASSIGN_OR_RETURN(const std::vector<Verdict> all, AllGatherValue(comm, verdict, "comparing results"));
  return all[0];
}

std::string Describe(const Verdict& verdict) {
  if (!verdict.accurate) return "WRONG";
  if (!verdict.bytes_match) return "BYTES DIFFER";
  if (!verdict.plausible) return "TOO FAST TO BE TRUE";
  return verdict.checked ? "ok" : "not verified";
}

}  // namespace tessera::launcher
