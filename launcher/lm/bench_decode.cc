// tessera bench decode: one decode step of one attention layer, by every method, in one run.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <optional>

#include "absl/cleanup/cleanup.h"
#include "collectives/agreement.h"
#include "launcher/command.h"
#include "launcher/lm/decode_report.h"
#include "launcher/lm/decode_subject.h"
#include "launcher/lm/method.h"
#include "launcher/output_file.h"
#include "launcher/problem_flags.h"
#include "launcher/progress.h"

namespace tessera::launcher {
namespace {

struct Flags {
  std::string model = "deepseek-v2-lite";
  int64_t context = 32768;
  int64_t batch = 1;
  int64_t query_tokens = 1;
  std::string dtype = "bf16";
  int repeats = 5;
  bool verify = true;
  uint64_t seed = 1;
  std::string json;
  MethodFlags methods{"all"};
  ExecutionFlags execution;
};

double RelativeError(const std::vector<float>& result, const std::vector<double>& truth) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < truth.size(); ++i) {
    difference += (result[i] - truth[i]) * (result[i] - truth[i]);
    norm += truth[i] * truth[i];
  }
  return std::sqrt(difference / norm);
}

// The step as the price model sees it.
DecodeProblem PricedProblem(const DecodeLoad& load) {
  DecodeProblem problem = LayerProblem(load.shape);
  if (!load.shape.is_mla()) problem.hidden = 0;  // attention alone is measured
  problem.context_tokens = load.context_tokens;
  problem.batch = load.batch;
  problem.query_tokens = load.query_tokens;
  problem.dtype = load.dtype;
  return problem;
}

// Received over all ranks; nothing where the price model refuses the step.
std::optional<int64_t> PredictedBytes(const DecodeLoad& load, const Method& method, int ranks) {
  const StatusOr<DecodePrice> price =
      PriceDecode(PricedProblem(load), method.method, ranks, method.groups, MachineModel());
  if (!price.ok()) return std::nullopt;
  return price->exchange_bytes + price->slice_bytes + price->all_reduce_bytes;
}

// Collective.
StatusOr<DecodeRow> Measure(Communicator& comm, const DecodeLoad& load, const Method& method,
                            const RandomMlaWeights* weights, const std::vector<double>& truth, int repeats) {
  StatusOr<std::unique_ptr<DecodeSubject>> subject = MakeDecodeSubject(comm, load, method, weights);
  TESSERA_RETURN_IF_ERROR(AgreeOnStatus(comm, subject.status(), "preparing " + method.ToString()));
  std::vector<std::vector<DecodeCost>> steps;
  for (int i = 0; i <= repeats; ++i) {
    StatusOr<DecodeCost> cost = (*subject)->Step();
    TESSERA_RETURN_IF_ERROR(AgreeOnStatus(comm, cost.status(), "decoding by " + method.ToString()));
    TESSERA_ASSIGN_OR_RETURN(std::vector<DecodeCost> all, AllGatherValue(comm, *cost, "collecting times"));
    if (i > 0) steps.push_back(std::move(all));  // the first step warms caches up
  }
  const auto slowest = [](const std::vector<DecodeCost>& ranks) {
    return *std::ranges::max_element(ranks, {}, &DecodeCost::seconds);
  };
  std::ranges::sort(steps, {}, [&](const auto& ranks) { return slowest(ranks).seconds; });
  const std::vector<DecodeCost>& median = steps[steps.size() / 2];
  DecodeRow row;
  row.method = method.ToString();
  row.ranks = comm.size();
  row.approximate = !method.exact && method.method == DecodeMethod::kTpla && method.groups > 1;
  row.kernel = (*subject)->kernel_name();
  row.slowest = slowest(median);
  row.bytes_predicted = PredictedBytes(load, method, comm.size());
  for (const DecodeCost& cost : median) {
    row.bytes_received += cost.bytes_received;
    row.attention_flops += cost.attention_flops;
  }
  row.read_bytes_per_second =
      static_cast<double>(row.slowest.cache_bytes_read) / std::max(row.slowest.attention_seconds, 1e-9);
  TESSERA_ASSIGN_OR_RETURN(row.cache_bytes_per_token,
                           AllGatherValue(comm, (*subject)->cache_bytes_per_token(), "comparing caches"));
  TESSERA_ASSIGN_OR_RETURN(row.cache_bytes, AllGatherValue(comm, (*subject)->cache_bytes(), "comparing caches"));
  TESSERA_ASSIGN_OR_RETURN(const std::vector<float> result, (*subject)->Result());
  if (!truth.empty()) row.error = RelativeError(result, truth);
  return row;
}

StatusOr<std::vector<Method>> MethodsOf(const MethodFlags& flags, const DecodeLoad& load, int ranks) {
  TESSERA_ASSIGN_OR_RETURN(std::vector<Method> methods, ResolveMethods(flags, PricedProblem(load), ranks));
  std::erase_if(methods, [](const Method& method) { return method.exact; });
  return methods;
}

StatusOr<bool> RunDecodeBench(const Flags& flags, const Context& context) {
  Communicator& world = *context.world;
  Progress progress(context.root());
  const StatusOr<DecodeShape> shape = ParseDecodeShape(flags.model);
  TESSERA_RETURN_IF_ERROR(AgreeOnStatus(world, shape.status(), "checking --model"));
  DecodeLoad load;
  load.device = flags.execution.device;
  load.shape = *shape;
  load.context_tokens = flags.context;
  load.batch = flags.batch;
  load.query_tokens = flags.query_tokens;
  load.dtype = *ParseDType(flags.dtype);
  load.seed = flags.seed;
  load.kernel = context.Kernel(flags.execution.kernel);
  load.threads = context.Threads(flags.execution.threads);
  const StatusOr<std::vector<Method>> methods = MethodsOf(flags.methods, load, world.size());
  TESSERA_RETURN_IF_ERROR(AgreeOnStatus(world, methods.status(), "checking --method"));
  Status writable;
  if (context.root() && !flags.json.empty()) writable = SafetensorsWriter::CheckWritable(flags.json);
  TESSERA_RETURN_IF_ERROR(AgreeOnStatus(world, writable, "checking the record file"));
  const StatusOr<std::string> device = NameOf(world, flags.execution.device);
  TESSERA_RETURN_IF_ERROR(AgreeOnStatus(world, device.status(), "checking --device"));
  progress.Say("making weights");
  std::optional<RandomMlaWeights> weights;
  if (shape->is_mla()) weights.emplace(shape->mla(), flags.seed);
  const RandomMlaWeights* weights_or_null = weights ? &*weights : nullptr;

  std::vector<double> truth;
  Status status;
  if (context.root() && flags.verify) {
    progress.Say("computing the first sequence in fp64");
    StatusOr<std::vector<double>> computed = DecodeTruth(load, weights_or_null);
    status = computed.status();
    if (computed.ok()) truth = *std::move(computed);
  }
  TESSERA_RETURN_IF_ERROR(AgreeOnStatus(world, status, "computing the first sequence in fp64"));
  if (context.root()) {
    std::printf("%s, one layer, context %ld, batch %ld, %ld query tokens, %s, %d ranks of %d threads, median of %d\n",
                flags.model.c_str(), load.context_tokens, load.batch, load.query_tokens, flags.dtype.c_str(),
                world.size(), load.threads, flags.repeats);
  }
  if (context.root() && !device->empty()) std::printf("computed on: %s\n", device->c_str());
  DecodeReport report(load, *device);
  const absl::Cleanup print = [&] {
    if (context.root()) report.Print();
  };
  bool passed = true;
  // One rank alone: what the others are compared with, and the plain error.
  std::optional<double> plain_error;
  if (world.size() > 1) {
    progress.Say("running one rank");
    const bool member = world.rank() == 0;
    TESSERA_ASSIGN_OR_RETURN(const std::unique_ptr<Communicator> alone, world.Split(member ? 0 : -1, 0));
    if (member) {
      StatusOr<DecodeRow> row = Measure(*alone, load, Method{}, weights_or_null, truth, flags.repeats);
      status = row.ok() ? absl::OkStatus() : Status(row.status().code(), row.status().message());
      if (row.ok()) {
        plain_error = row->error;
        row->accurate = Accurate(*row, load.dtype, std::nullopt);
        passed = row->ok();
        report.Add(*row);
      }
    }
    TESSERA_RETURN_IF_ERROR(AgreeOnStatus(world, status, "running one rank"));
  }
  for (const Method& method : *methods) {
    progress.Say("running " + method.ToString());
    if (!shape->is_mla() && method.method == DecodeMethod::kTpla) {
      report.AddRefusal(method.ToString(),
                        absl::InvalidArgumentError("tpla shards a latent cache; " + shape->name + " has none"));
      continue;
    }
    StatusOr<DecodeRow> row = Measure(world, load, method, weights_or_null, truth, flags.repeats);
    if (!row.ok() && IsAgreed(row.status())) {
      report.AddRefusal(method.ToString(), row.status());
      passed = false;
      continue;
    }
    TESSERA_RETURN_IF_ERROR(row.status());
    row->accurate = Accurate(*row, load.dtype, plain_error);
    passed = passed && row->ok();
    report.Add(*row);
  }
  if (context.root() && !flags.json.empty()) status = WriteAside(flags.json, report.records());
  TESSERA_RETURN_IF_ERROR(AgreeOnStatus(world, status, "writing the record file"));
  TESSERA_ASSIGN_OR_RETURN(const auto all, AllGatherValue(world, passed ? 1 : 0, "agreeing on the result"));
  return all[0] != 0;
}

}  // namespace

void AddDecodeBench(CLI::App& bench, Selection& selection) {
  const auto flags = std::make_shared<Flags>();
  CLI::App* command = bench.add_subcommand("decode", "one decode step of one attention layer, by every method");
  command
      ->add_option("--model", flags->model,
                   "the layer: one of " + DecodeShapeHelp() + "; attention alone without a latent")
      ->capture_default_str();
  command->add_option("--context", flags->context, "cached tokens per sequence")
      ->check(CLI::Range(int64_t{1}, kMostTokens))
      ->capture_default_str();
  command->add_option("--batch", flags->batch, "sequences")->check(CLI::Range(1, 1 << 20))->capture_default_str();
  command->add_option("--query-tokens", flags->query_tokens, "new tokens per sequence and step")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command->add_option("--dtype", flags->dtype, "of the cache; bf16 also rounds the projections")
      ->check(CLI::IsMember({"fp32", "bf16", "fp16"}))
      ->capture_default_str();
  command->add_option("--repeat", flags->repeats, "steps per row, of which the median counts")
      ->check(CLI::Range(1, 10000))
      ->capture_default_str();
  command->add_flag("--verify,!--no-verify", flags->verify,
                    "compare the first sequence with fp64 (on unless --no-verify)");
  command->add_option("--seed", flags->seed, "of weights and context")->capture_default_str();
  command->add_option("--json", flags->json, "file to write a record per row to");
  AddMethodFlags(*command, flags->methods);
  AddExecutionFlags(*command, flags->execution);
  AddDeviceFlag(*command, flags->execution);
  command->footer(
      "The first row is one rank alone. \"vs head\" compares with head parallelism in the same run. Sums: the\n"
      "heads' outputs over all ranks; under tpla also queries and values between slices. GB/s: cache bytes of the\n"
      "slowest rank over its time in attention; TFLOP/s: attention of all ranks. A GPU's step is not split into "
      "parts.\n"
      "Example:\n"
      "  mpirun -n 2 tessera bench decode --model deepseek-v3 --context 32768");
  command->callback([flags, &selection] {
    selection = {[flags](const Context& context) { return RunDecodeBench(*flags, context); },
                 flags->execution.deadline_seconds, /*needs_ranks=*/true};
  });
}

}  // namespace tessera::launcher
