// tessera bench kernel: decode kernels on one process, as a share of what this machine can do, measured in the same
// run.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <ctime>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>

#include "kernels/decode.h"
#include "kernels/limits.h"
#include "launcher/build_info.h"
#include "launcher/command.h"
#include "launcher/host.h"
#include "launcher/output_file.h"
#include "launcher/table.h"
#include "runtime/base/elapsed.h"

namespace tessera::launcher {
namespace {

// One decode step of one layer: a query row of one sequence, heads and widths as on one rank.
struct Shape {
  DType dtype = DType::kBFloat16;
  int heads = 0;
  int kv_heads = 0;
  int qk_width = 0;
  int v_width = 0;
  bool latent = false;  // values are the first columns of the keys
  int64_t context = 0;
  int page_tokens = 64;

  int64_t KeyBytes() const { return qk_width * static_cast<int64_t>(SizeInBytes(dtype)); }
  int64_t ValueBytes() const { return latent ? 0 : v_width * static_cast<int64_t>(SizeInBytes(dtype)); }
  double Bytes() const { return static_cast<double>(context * kv_heads * (KeyBytes() + ValueBytes())); }
  double Flops() const { return 2.0 * heads * (qk_width + v_width) * static_cast<double>(context); }
  std::string ToString() const {
    return absl::StrCat(heads, "/", kv_heads, "/", qk_width, "/", v_width, latent ? "/latent" : "");
  }
};

struct Flags {
  std::vector<std::string> problems = {"32/8/128/128", "16/1/576/512/latent", "128/1/576/512/latent"};
  std::string dtype = "bf16";
  std::string kernel = "all";
  std::string json;
  int64_t context = 32768;
  int64_t read_mebibytes = 256;
  int page_tokens = 64;
  int repeats = 7;
  std::vector<int> threads = {1, 2};
};

StatusOr<Shape> ParseShape(const std::string& text, const Flags& flags) {
  Shape shape;
  std::istringstream in(text);
  char slash[3] = {};
  std::string rest;
  in >> shape.heads >> slash[0] >> shape.kv_heads >> slash[1] >> shape.qk_width >> slash[2] >> shape.v_width;
  const bool parsed = !in.fail() && std::count(slash, slash + 3, '/') == 3;
  in.clear();
  in >> rest;
  shape.latent = rest == "/latent";
  if (!parsed || !(rest.empty() || shape.latent) || shape.kv_heads < 1 || shape.heads < 1 ||
      shape.heads % shape.kv_heads != 0 || shape.qk_width < 1 || shape.v_width < 1 ||
      (shape.latent && shape.v_width > shape.qk_width)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--problem ", text,
                     "; allowed: HEADS/KV_HEADS/QK_WIDTH/V_WIDTH, with /latent behind where values "
                     "are the first columns of keys"));
  }
  shape.dtype = *ParseDType(flags.dtype);
  shape.context = flags.context;
  shape.page_tokens = flags.page_tokens;
  return shape;
}

// A cache of random numbers whose pages lie in random order, and one query row.
class Step {
 public:
  Step(const Shape& shape, uint64_t seed) : shape_(shape) {
    const int64_t pages = (shape.context + shape.page_tokens - 1) / shape.page_tokens;
    const int64_t page_bytes = shape.page_tokens * shape.kv_heads * (shape.KeyBytes() + shape.ValueBytes());
    Fill(static_cast<size_t>(pages * page_bytes) / SizeInBytes(shape.dtype), seed, &cache_);
    Fill(static_cast<size_t>(shape.heads * shape.qk_width), seed + 1, &query_);
    pages_.resize(pages);
    for (int64_t i = 0; i < pages; ++i) pages_[i] = static_cast<int32_t>(i);
    uint64_t state = seed;
    for (int64_t i = pages; i > 1; --i) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      std::swap(pages_[i - 1], pages_[(state >> 33) % i]);
    }
    output_.resize(static_cast<size_t>(shape.heads) * shape.v_width);
    lse_.resize(shape.heads);
  }

  // The first `keys` keys; results as they come.
  StatusOr<std::vector<float>> Run(const DecodeKernel& kernel, int64_t keys, int threads) {
    const Range visible[] = {{0, keys}};
    const DecodeSequence sequence{0, pages_, visible};
    DecodeArgs args;
    args.query = ConstTensorView::Dense(query_.data(), shape_.dtype, 1, shape_.heads, shape_.qk_width);
    args.output = TensorView::Dense(output_.data(), DType::kFloat32, 1, shape_.heads, shape_.v_width);
    args.lse = TensorView::Dense(lse_.data(), DType::kFloat32, 1, shape_.heads, 1);
    CacheLayer& layer = args.cache;
    layer.dtype = shape_.dtype;
    layer.kv_heads = shape_.kv_heads;
    layer.qk_width = shape_.qk_width;
    layer.v_width = shape_.v_width;
    layer.page_tokens = shape_.page_tokens;
    layer.key_head_stride = shape_.KeyBytes();
    layer.key_row_stride = shape_.kv_heads * shape_.KeyBytes();
    layer.value_head_stride = shape_.latent ? layer.key_head_stride : shape_.ValueBytes();
    layer.value_row_stride = shape_.kv_heads * layer.value_head_stride;
    layer.page_stride = shape_.page_tokens * shape_.kv_heads * (shape_.KeyBytes() + shape_.ValueBytes());
    layer.key = cache_.data();
    layer.value = shape_.latent ? layer.key : layer.key + shape_.page_tokens * layer.key_row_stride;
    args.sequences = {&sequence, 1};
    args.group = shape_.heads / shape_.kv_heads;
    args.scale = 1.0f / std::sqrt(static_cast<float>(shape_.qk_width));
    args.threads = threads;
    TESSERA_RETURN_IF_ERROR(kernel.Decode(args));
    return output_;
  }

 private:
  void Fill(size_t count, uint64_t seed, std::vector<std::byte>* to) const {
    to->resize(count * SizeInBytes(shape_.dtype));
    uint64_t state = seed;
    for (size_t i = 0; i < count; ++i) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      // Uniform in [-2, 2): any data but zeros and denormals will do, real data costs more power than those.
      StoreFromFloat(to->data(), shape_.dtype, static_cast<int64_t>(i),
                     static_cast<float>(static_cast<int64_t>(state >> 40)) * 0x1p-22f - 2.0f);
    }
  }

  Shape shape_;
  std::vector<std::byte> cache_, query_;
  std::vector<int32_t> pages_;
  std::vector<float> output_, lse_;
};

// Root mean square of the difference to fp64 over that of the result, on a short context.
StatusOr<double> RelativeError(Step& step, const DecodeKernel& kernel, int64_t keys, int threads) {
  TESSERA_ASSIGN_OR_RETURN(const std::vector<float> exact, step.Run(*DecodeKernels().back(), keys, threads));
  TESSERA_ASSIGN_OR_RETURN(const std::vector<float> result, step.Run(kernel, keys, threads));
  double difference = 0, size = 0;
  for (size_t i = 0; i < exact.size(); ++i) {
    difference += (double{result[i]} - exact[i]) * (double{result[i]} - exact[i]);
    size += double{exact[i]} * exact[i];
  }
  return std::sqrt(difference / size);
}

struct Sample {
  Shape shape;
  std::string kernel;
  int threads = 1;
  double seconds = 0;             // median
  double cpu_seconds = 0;         // the least processor time of a run, per thread
  double memory_seconds = 0;      // what reading the cache takes at least
  double arithmetic_seconds = 0;  // what the products take at least, in the kernel's arithmetic
  double error = 0;

  double Floor() const { return std::max(memory_seconds, arithmetic_seconds); }
  std::string_view Binds() const { return memory_seconds > arithmetic_seconds ? "memory" : "arithmetic"; }
  // Half types round every weight once; fp32 rounds sums of thousands.
  bool ok() const { return error < (shape.dtype == DType::kFloat32 ? 1e-5 : 4e-3); }
};

std::string ToJsonLine(const Sample& sample, const MachineLimits& limits) {
  return nlohmann::ordered_json{
      {"schema", "tessera-bench-kernel-1"},
      {"revision", kRevision},
      {"machine", {{"host", HostName()}, {"cpu", CpuModel()}, {"cores", UsableCores()}}},
      {"limits",
       {{"fp32_flops", limits.fp32_flops}, {"bf16_flops", limits.bf16_flops}, {"read_bytes", limits.read_bytes}}},
      {"operation", "decode"},
      {"problem", sample.shape.ToString()},
      {"dtype", std::string(Name(sample.shape.dtype))},
      {"context_tokens", sample.shape.context},
      {"page_tokens", sample.shape.page_tokens},
      {"implementation", sample.kernel},
      {"threads", sample.threads},
      {"seconds", sample.seconds},
      {"cpu_seconds", sample.cpu_seconds},
      {"bytes", sample.shape.Bytes()},
      {"flops", sample.shape.Flops()},
      {"binds", std::string(sample.Binds())},
      {"share_of_limit", sample.Floor() / sample.seconds},
      {"error", sample.error},
      {"ok", sample.ok()},
  }
      .dump();
}

StatusOr<Sample> Measure(Step& step, const Shape& shape, const DecodeKernel& kernel, const MachineLimits& limits,
                         int threads, int repeats) {
  Sample sample{shape, std::string(kernel.name()), threads};
  TESSERA_ASSIGN_OR_RETURN(sample.error, RelativeError(step, kernel, std::min<int64_t>(shape.context, 512), threads));
  std::vector<double> seconds, cpu_seconds;
  for (int i = 0; i < repeats; ++i) {
    const std::clock_t cpu = std::clock();
    const auto start = std::chrono::steady_clock::now();
    TESSERA_RETURN_IF_ERROR(step.Run(kernel, shape.context, threads).status());
    seconds.push_back(SecondsSince(start));
    cpu_seconds.push_back(static_cast<double>(std::clock() - cpu) / CLOCKS_PER_SEC / threads);
  }
  std::sort(seconds.begin(), seconds.end());
  sample.seconds = seconds[seconds.size() / 2];
  sample.cpu_seconds = *std::min_element(cpu_seconds.begin(), cpu_seconds.end());
  const bool dot = kernel.name().ends_with("bf16");
  sample.memory_seconds = shape.Bytes() / limits.read_bytes;
  sample.arithmetic_seconds = shape.Flops() / (dot ? limits.bf16_flops : limits.fp32_flops);
  return sample;
}

StatusOr<bool> BenchKernel(const Flags& flags) {
  std::vector<Shape> shapes;
  for (const std::string& problem : flags.problems) {
    TESSERA_ASSIGN_OR_RETURN(shapes.emplace_back(), ParseShape(problem, flags));
  }
  if (!flags.json.empty()) TESSERA_RETURN_IF_ERROR(SafetensorsWriter::CheckWritable(flags.json));
  Table table({"problem", "dtype", "context", "kernel", "threads", "seconds", "CPU", "GB/s", "GFLOP/s", "binds",
               "of limit", "(CPU)", "rel error", "check"});
  std::string refused, records;
  bool passed = true, any = false;
  for (const int threads : flags.threads) {
    const MachineLimits limits = MeasureLimits(threads, flags.read_mebibytes << 20);
    std::printf("%d threads at most: fp32 %.0f GFLOP/s, bf16 dot %.0f GFLOP/s, read %.1f GB/s\n", threads,
                limits.fp32_flops / 1e9, limits.bf16_flops / 1e9, limits.read_bytes / 1e9);
    if (limits.read_bytes <= 0) return absl::ResourceExhaustedError("no memory to measure bandwidth with");
    for (const Shape& shape : shapes) {
      Step step(shape, 1);
      for (const DecodeKernel* kernel : DecodeKernels()) {
        const std::string name(kernel->name());
        // The fp64 reference is the judge; it is measured only when asked for.
        if (flags.kernel == "all" ? name == "reference" : name != flags.kernel) continue;
        if (const std::string reason = kernel->WhyNot({shape.dtype, shape.qk_width, shape.v_width, shape.latent});
            !reason.empty()) {
          absl::StrAppend(&refused, "  ", shape.ToString(), " ", name, ": ", reason, "\n");
          continue;
        }
        TESSERA_ASSIGN_OR_RETURN(const Sample sample, Measure(step, shape, *kernel, limits, threads, flags.repeats));
        table.Add({shape.ToString(), flags.dtype, absl::StrCat(shape.context), name, absl::StrCat(threads),
                   FormatSeconds(sample.seconds), FormatSeconds(sample.cpu_seconds),
                   absl::StrFormat("%.1f", shape.Bytes() / sample.seconds / 1e9),
                   absl::StrFormat("%.0f", shape.Flops() / sample.seconds / 1e9), std::string(sample.Binds()),
                   absl::StrFormat("%.0f%%", 100 * sample.Floor() / sample.seconds),
                   absl::StrFormat("%.0f%%", 100 * sample.Floor() / sample.cpu_seconds), FormatError(sample.error),
                   sample.ok() ? "ok" : "WRONG"});
        absl::StrAppend(&records, ToJsonLine(sample, limits), "\n");
        passed = passed && sample.ok();
        any = true;
      }
    }
  }
  if (any) std::fputs(table.ToString().c_str(), stdout);
  if (!refused.empty()) std::printf("not run:\n%s", refused.c_str());
  if (!any) return absl::FailedPreconditionError(absl::StrCat("no decode kernel called \"", flags.kernel, "\" ran"));
  if (!flags.json.empty()) TESSERA_RETURN_IF_ERROR(WriteAside(flags.json, records));
  return passed;
}

}  // namespace

void AddKernelBench(CLI::App& bench, Selection& selection) {
  const auto flags = std::make_shared<Flags>();
  CLI::App* command = bench.add_subcommand("kernel", "decode kernels of this process against this machine's limits");
  command->add_option("--problem", flags->problems, "HEADS/KV_HEADS/QK_WIDTH/V_WIDTH[/latent], several by commas")
      ->delimiter(',')
      ->capture_default_str();
  command->add_option("--context", flags->context, "cached tokens")
      ->capture_default_str()
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 24));
  command->add_option("--page", flags->page_tokens, "tokens of a page")
      ->capture_default_str()
      ->check(CLI::Range(1, 1 << 16));
  command->add_option("--dtype", flags->dtype, "of the cache")
      ->capture_default_str()
      ->check(CLI::IsMember({"fp32", "bf16", "fp16"}));
  command->add_option("--kernel", flags->kernel, "one by name, or all but the reference")->capture_default_str();
  command->add_option("--threads", flags->threads, "thread counts, as 1,2")
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
      "\"of limit\" is the time that reading the cache or multiplying takes at least, whichever is longer, over the "
      "time\nmeasured. The limits are measured first; other work on the machine moves both. \"(CPU)\" is the same by "
      "the least\n"
      "processor time per thread, which other work moves less; waiting threads spin, so it is exact for one thread.\n"
      "Example:\n"
      "  tessera bench kernel --problem 16/1/576/512/latent --context 131072 --threads 1,4");
  command->callback([flags, &selection] {
    selection = {[flags](const Context&) { return BenchKernel(*flags); }, 0, /*needs_ranks=*/false};
  });
}

}  // namespace tessera::launcher
