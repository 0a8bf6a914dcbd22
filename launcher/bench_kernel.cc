// tessera bench kernel: the kernels of one process, as a share of what this machine can do, measured in the same run.
#include "launcher/bench_kernel.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <ctime>
#include <nlohmann/json.hpp>

#include "absl/strings/str_join.h"
#include "kernels/limits.h"
#include "launcher/build_info.h"
#include "launcher/command.h"
#include "launcher/device_kernels.h"
#include "launcher/host.h"
#include "launcher/output_file.h"
#include "launcher/table.h"
#include "runtime/base/elapsed.h"

namespace tessera::launcher {
namespace {

struct Flags {
  std::vector<std::string> problems = {"decode:32/8/128/128", "decode:16/1/576/512/latent",
                                       "decode:128/1/576/512/latent", "forward:8/8/64/64:4096:causal",
                                       "backward:8/8/64/64:4096:causal"};
  std::vector<std::string> dtypes = {"bf16"};
  std::vector<std::string> kernels = {"all"};
  std::string json;
  std::string device = "cpu";
  int matrix_width = 8192;
  int64_t context = 32768;
  int64_t read_mebibytes = 256;
  int page_tokens = 64;
  int repeats = 7;
  std::vector<int> threads = {1, 2};
};

double MedianOf(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

struct Sample {
  std::string kernel;
  int threads = 1;
  std::vector<double> seconds;
  std::vector<double> cpu_seconds;     // processor time of a run, per thread; empty on a GPU
  std::vector<double> memory_seconds;  // what reading the operands takes at least, at the rate right before each run
  double arithmetic_seconds = 0;       // what the products take at least, in the kernel's arithmetic
  double error = 0;
  bool ok = false;

  double Median() const { return MedianOf(seconds); }
  // Of all runs: what binds takes at least, over what the run took.
  double ShareOfLimit() const {
    std::vector<double> shares;
    for (size_t i = 0; i < seconds.size(); ++i) {
      shares.push_back(std::max(memory_seconds[i], arithmetic_seconds) / seconds[i]);
    }
    return MedianOf(std::move(shares));
  }
  // 0 on a GPU.
  double LeastCpu() const {
    return cpu_seconds.empty() ? 0 : *std::min_element(cpu_seconds.begin(), cpu_seconds.end());
  }
  double ShareOfLimitByCpu() const {
    return std::max(*std::min_element(memory_seconds.begin(), memory_seconds.end()), arithmetic_seconds) / LeastCpu();
  }
  std::string_view Binds() const { return MedianOf(memory_seconds) > arithmetic_seconds ? "memory" : "arithmetic"; }
};

std::string ToJsonLine(const KernelSubject& subject, const Sample& sample, const MachineLimits& limits,
                       const std::string& device) {
  return nlohmann::ordered_json{
      {"schema", "tessera-bench-kernel-4"},
      {"revision", kRevision},
      {"device", device},
      {"machine", {{"host", HostName()}, {"cpu", CpuModel()}, {"cores", UsableCores()}}},
      {"limits",
       {{"fp32_flops", limits.fp32_flops},
        {"bf16_flops", limits.bf16_flops},
        {"tile_flops", limits.tile_flops},
        {"read_bytes", limits.read_bytes}}},
      {"operation", subject.operation()},
      {"problem", subject.problem()},
      {"dtype", std::string(Name(subject.dtype()))},
      {"implementation", sample.kernel},
      {"threads", sample.threads},
      {"seconds", sample.Median()},
      {"samples", sample.seconds},
      {"cpu_seconds", sample.LeastCpu()},
      {"memory_seconds", sample.memory_seconds},
      {"bytes", subject.bytes()},
      {"flops", subject.flops()},
      {"binds", std::string(sample.Binds())},
      {"share_of_limit", sample.ShareOfLimit()},
      {"error", sample.error},
      {"ok", sample.ok},
  }
      .dump();
}

// The implementations that --kernel selects; the fp64 reference is the judge and measured only when asked for. `first`
// when none was selected yet.
bool Selected(const Flags& flags, const std::string& name, bool first) {
  const auto asked = [&](const std::string& wanted) {
    return wanted == name || (wanted == "auto" && first) || (wanted == "all" && name != "reference");
  };
  return std::any_of(flags.kernels.begin(), flags.kernels.end(), asked);
}

// Where a benchmark runs: this process's cores, or its GPU.
struct Machine {
  std::unique_ptr<DeviceKernels> gpu;  // null: the cores

  std::string name() const { return gpu == nullptr ? "cpu" : gpu->device_name(); }
  StatusOr<std::unique_ptr<KernelSubject>> MakeSubject(const KernelProblem& problem) const {
    if (problem.operation == "decode") {
      return MakeDecodeSubject(problem, gpu == nullptr ? DecodeKernels() : gpu->decode());
    }
    if (gpu == nullptr) return MakeAttendSubject(problem, AttentionKernels());
    return MakeAttendSubject(problem, problem.operation == "forward" ? gpu->forward() : gpu->backward());
  }
  StatusOr<MachineLimits> Limits(const Flags& flags, const ReadBandwidth& bandwidth, int threads) const {
    if (gpu != nullptr) return gpu->Limits(flags.matrix_width, flags.read_mebibytes << 20);
    const MachineLimits limits = MeasureLimits(threads, bandwidth);
    if (limits.read_bytes <= 0) return absl::ResourceExhaustedError("no memory to measure bandwidth with");
    return limits;
  }
  std::string ToString(const MachineLimits& limits, int threads) const {
    if (gpu != nullptr) {
      return absl::StrFormat("at most on %s: bf16 product %.1f TFLOP/s, copy %.0f GB/s read and written", name(),
                             limits.bf16_flops / 1e12, limits.read_bytes / 1e9);
    }
    return absl::StrFormat(
        "at most with %d threads: fp32 %.0f GFLOP/s, bf16 dot %.0f GFLOP/s, tiles %.0f GFLOP/s, read %.1f GB/s",
        threads, limits.fp32_flops / 1e9, limits.bf16_flops / 1e9, limits.tile_flops / 1e9, limits.read_bytes / 1e9);
  }
};

// In the kernel's arithmetic; all products on a GPU are the tensor cores'.
double PeakOf(const std::string& kernel, const MachineLimits& limits) {
  if (kernel.ends_with("amx")) return limits.tile_flops;
  return kernel.ends_with("bf16") || kernel.starts_with("cuda") ? limits.bf16_flops : limits.fp32_flops;
}

// Runs what is selected by turns, so that other work on the machine disturbs all alike. An implementation that takes
// seconds is repeated less often.
StatusOr<std::vector<Sample>> Measure(KernelSubject& subject, const Machine& machine, const Flags& flags,
                                      const MachineLimits& limits, const ReadBandwidth& bandwidth, int threads,
                                      std::string* refused) {
  constexpr double kMostSeconds = 10;
  constexpr size_t kFewestRuns = 3;
  std::vector<Sample> samples;
  std::vector<size_t> implementations;
  const std::vector<std::string> names = subject.implementations();
  for (size_t i = 0; i < names.size(); ++i) {
    if (!Selected(flags, names[i], samples.empty())) continue;
    if (const std::string reason = subject.WhyNot(i); !reason.empty()) {
      absl::StrAppend(refused, "  ", subject.problem(), " ", std::string(Name(subject.dtype())), " ", names[i], ": ",
                      reason, "\n");
      continue;
    }
    Sample sample;
    sample.kernel = names[i];
    sample.threads = threads;
    TESSERA_ASSIGN_OR_RETURN(sample.error, subject.Error(i, threads));
    sample.ok = sample.error < subject.tolerance();
    const double peak = PeakOf(names[i], limits);
    sample.arithmetic_seconds = peak > 0 ? subject.flops() / peak : 0;  // the reference has no limit on a GPU
    samples.push_back(sample);
    implementations.push_back(i);
  }
  for (int repeat = 0; repeat < flags.repeats; ++repeat) {
    for (size_t i = 0; i < samples.size(); ++i) {
      Sample& sample = samples[i];
      const size_t runs = sample.seconds.size();
      if (runs >= kFewestRuns && static_cast<double>(runs) * sample.Median() > kMostSeconds) continue;
      TESSERA_RETURN_IF_ERROR(subject.Prepare(implementations[i], threads));
      // Other work on the machine takes some of the memory's bandwidth, and not always as much.
      const double read_bytes = machine.gpu != nullptr ? limits.read_bytes : bandwidth.OnePass();
      sample.memory_seconds.push_back(subject.bytes() / read_bytes);
      const std::clock_t cpu = std::clock();
      const auto start = std::chrono::steady_clock::now();
      TESSERA_RETURN_IF_ERROR(subject.Run(implementations[i], threads));
      if (machine.gpu != nullptr && sample.kernel != "reference") {
        sample.seconds.push_back(machine.gpu->seconds());
        continue;
      }
      sample.seconds.push_back(SecondsSince(start));
      sample.cpu_seconds.push_back(static_cast<double>(std::clock() - cpu) / CLOCKS_PER_SEC / threads);
    }
  }
  return samples;
}

StatusOr<bool> BenchKernel(const Flags& flags) {
  std::vector<KernelProblem> problems;
  for (const std::string& text : flags.problems) {
    for (const std::string& dtype : flags.dtypes) {
      TESSERA_ASSIGN_OR_RETURN(problems.emplace_back(),
                               ParseKernelProblem(text, *ParseDType(dtype), flags.context, flags.page_tokens));
    }
  }
  if (!flags.json.empty()) TESSERA_RETURN_IF_ERROR(SafetensorsWriter::CheckWritable(flags.json));
  Table table({"problem", "dtype", "kernel", "threads", "seconds", "CPU", "GB/s", "GFLOP/s", "binds", "of limit",
               "(CPU)", "rel error", "check"});
  std::string refused, records;
  bool passed = true;
  Machine machine;
  if (flags.device == "cuda") {
    TESSERA_ASSIGN_OR_RETURN(machine.gpu, OpenDeviceKernels());
  }
  for (const int threads : machine.gpu == nullptr ? flags.threads : std::vector<int>{1}) {
    for (const KernelProblem& problem : problems) {
      // Close in time to what they judge.
      const ReadBandwidth bandwidth(threads, machine.gpu == nullptr ? flags.read_mebibytes << 20 : 0);
      TESSERA_ASSIGN_OR_RETURN(const MachineLimits limits, machine.Limits(flags, bandwidth, threads));
      std::printf("%s, %s\n", problem.ToString().c_str(), machine.ToString(limits, threads).c_str());
      TESSERA_ASSIGN_OR_RETURN(const auto subject, machine.MakeSubject(problem));
      TESSERA_ASSIGN_OR_RETURN(const auto samples,
                               Measure(*subject, machine, flags, limits, bandwidth, threads, &refused));
      for (const Sample& sample : samples) {
        const double seconds = sample.Median();
        const bool on_gpu = sample.cpu_seconds.empty();
        table.Add({subject->problem(), std::string(Name(subject->dtype())), sample.kernel, absl::StrCat(threads),
                   FormatSeconds(seconds), on_gpu ? "-" : FormatSeconds(sample.LeastCpu()),
                   absl::StrFormat("%.1f", subject->bytes() / seconds / 1e9),
                   absl::StrFormat("%.0f", subject->flops() / seconds / 1e9), std::string(sample.Binds()),
                   absl::StrFormat("%.0f%%", 100 * sample.ShareOfLimit()),
                   on_gpu ? "-" : absl::StrFormat("%.0f%%", 100 * sample.ShareOfLimitByCpu()),
                   FormatError(sample.error), sample.ok ? "ok" : "WRONG"});
        absl::StrAppend(&records, ToJsonLine(*subject, sample, limits, machine.name()), "\n");
        passed = passed && sample.ok;
      }
    }
  }
  if (!table.empty()) std::fputs(table.ToString().c_str(), stdout);
  if (!refused.empty()) std::printf("not run:\n%s", refused.c_str());
  if (table.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat("no kernel called \"", absl::StrJoin(flags.kernels, "\" or \""), "\" ran"));
  }
  if (!flags.json.empty()) TESSERA_RETURN_IF_ERROR(WriteAside(flags.json, records));
  return passed;
}

}  // namespace

void AddKernelBench(CLI::App& bench, Selection& selection) {
  const auto flags = std::make_shared<Flags>();
  CLI::App* command = bench.add_subcommand("kernel", "kernels of this process against this machine's limits");
  command
      ->add_option("--problem", flags->problems,
                   "[OPERATION:]HEADS/KV_HEADS/QK_WIDTH/V_WIDTH[/latent][:TOKENS[:MASK]], several by commas")
      ->delimiter(',')
      ->capture_default_str();
  command->add_option("--context", flags->context, "tokens of problems that state none")
      ->capture_default_str()
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 24));
  command->add_option("--page", flags->page_tokens, "tokens of a page of the decode cache")
      ->capture_default_str()
      ->check(CLI::Range(1, 1 << 16));
  command->add_option("--dtype", flags->dtypes, "of the tensors, several by commas")
      ->delimiter(',')
      ->capture_default_str()
      ->check(CLI::IsMember({"fp32", "bf16", "fp16"}));
  command
      ->add_option("--kernel", flags->kernels,
                   "by name, several by commas; auto is the fastest, all are all but the reference")
      ->delimiter(',')
      ->capture_default_str();
  command->add_option("--device", flags->device, "cpu, or cuda: the process's first GPU")
      ->capture_default_str()
      ->check(CLI::IsMember({"cpu", "cuda"}));
  command->add_option("--matrix", flags->matrix_width, "width of the square product that is a GPU's limit")
      ->capture_default_str()
      ->check(CLI::Range(64, 1 << 15));
  command->add_option("--threads", flags->threads, "thread counts, as 1,2; not of a GPU")
      ->delimiter(',')
      ->capture_default_str()
      ->check(CLI::Range(1, 1024));
  command->add_option("--repeat", flags->repeats, "executions per row, of which the median counts")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000));
  command->add_option("--read-mebibytes", flags->read_mebibytes, "memory to measure bandwidth with, beyond all caches")
      ->capture_default_str()
      ->check(CLI::Range(1, 1 << 16));
  command->add_option("--json", flags->json, "file to write one JSON record per row to");
  command->footer(
      "OPERATION is decode (one query row against TOKENS cached ones; the default), forward or backward (TOKENS "
      "against\n"
      "themselves; MASK as in other commands, causal by default).\n"
      "\"of limit\" is the time that reading the operands or multiplying takes at least, whichever is longer, over the "
      "time\nmeasured, the median of all runs. Other work on the machine moves both: arithmetic is measured before "
      "each "
      "problem,\nreading before each run. \"(CPU)\" is the same by the least processor time per thread, which other "
      "work "
      "moves less;\nwaiting threads spin, so it is exact for one thread.\n"
      "Implementations run by turns.\n"
      "Examples:\n"
      "  tessera bench kernel --problem decode:16/1/576/512/latent:131072 --threads 1,4\n"
      "  tessera bench kernel --problem forward:8/8/64/64:4096:full,backward:8/2/128/128:4096:window:512 --dtype "
      "bf16,fp32");
  command->callback([flags, &selection] {
    selection = {[flags](const Context&) { return BenchKernel(*flags); }, 0, /*needs_ranks=*/false};
  });
}

}  // namespace tessera::launcher
