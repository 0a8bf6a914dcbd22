// tessera score: bits per byte of a text under a language model, with attention computed over all ranks.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "absl/cleanup/cleanup.h"
#include "collectives/agreement.h"
#include "launcher/command.h"
#include "launcher/lm/scorer.h"
#include "launcher/lm/text.h"
#include "launcher/output_file.h"
#include "launcher/problem_flags.h"
#include "launcher/table.h"

namespace tessera::launcher {
namespace {

struct Flags {
  std::string model;
  std::string text;
  std::string json;
  int64_t context = 0;
  int64_t windows = 0;
  std::vector<double> prefixes;
  int64_t query_tokens = 0;
  std::string dtype = "fp32";
  MethodFlags methods{"exact"};
  ExecutionFlags execution;
};

StatusOr<Windows> MakeWindows(const Flags& flags, const ModelConfig& config) {
  Windows windows;
  windows.context = flags.context > 0 ? flags.context : config.max_positions;
  if (windows.context > config.max_positions) {
    return absl::InvalidArgumentError(absl::StrFormat("--context %d: the model supports at most %d positions",
                                                      windows.context, config.max_positions));
  }
  TESSERA_ASSIGN_OR_RETURN(windows.bytes, ReadTokens(flags.text, config));
  windows.count = (static_cast<int64_t>(windows.bytes.size()) - 1) / windows.context;
  if (flags.windows > 0) windows.count = std::min(windows.count, flags.windows);
  if (windows.count < 1) {
    return absl::InvalidArgumentError(absl::StrFormat("%s has %d bytes; a window of --context %d needs %d", flags.text,
                                                      windows.bytes.size(), windows.context, windows.context + 1));
  }
  return windows;
}

struct Inputs {
  LoadedModel model;
  Windows windows;
  std::vector<Method> methods;
};

StatusOr<Inputs> Load(const Flags& flags, const ExactOptions& exact, int ranks) {
  if (!flags.json.empty()) TESSERA_RETURN_IF_ERROR(SafetensorsWriter::CheckWritable(flags.json));
  TESSERA_ASSIGN_OR_RETURN(LoadedModel model, LoadModel(flags.model, exact.compute, exact.threads));
  TESSERA_RETURN_IF_ERROR(CheckAttentionKernel(model.config, exact));
  TESSERA_ASSIGN_OR_RETURN(Windows windows, MakeWindows(flags, model.config));
  TESSERA_ASSIGN_OR_RETURN(std::vector<Method> methods,
                           ResolveMethods(flags.methods,
                                          DecodeProblemOf(model.config.attention, windows.context, windows.count,
                                                          std::max<int64_t>(flags.query_tokens, 1), exact.dtype),
                                          ranks));
  return Inputs{std::move(model), std::move(windows), std::move(methods)};
}

StatusOr<bool> RunScore(const Flags& flags, const Context& context) {
  Communicator& world = *context.world;
  Progress progress(context.root());
  const ExactOptions exact = MakeExactOptions(flags.execution, flags.dtype, context);
  progress.Say("loading " + flags.model);
  StatusOr<Inputs> inputs = Load(flags, exact, world.size());
  TESSERA_RETURN_IF_ERROR(AgreeOnStatus(world, inputs.status(), "loading the model"));
  const Windows& windows = inputs->windows;
  if (context.root()) {
    std::printf("%s on %s: %ld windows of %ld bytes, %d ranks of %d threads, %s\n", flags.model.c_str(),
                flags.text.c_str(), windows.count, windows.context, world.size(), exact.threads, flags.dtype.c_str());
  }

  Table table({"method", "prefilled", "bytes scored", "bits per byte", "against exact", "cache B/token/layer",
               "seconds", "bytes/s"});
  nlohmann::json records = nlohmann::json::array();
  const absl::Cleanup print = [&] {
    if (context.root() && !table.empty()) std::fputs(table.ToString().c_str(), stdout);
    std::fflush(stdout);
  };
  Scorer scorer(world, inputs->model, windows, exact, flags.query_tokens, progress);
  for (double fraction : flags.prefixes) {
    const auto prefix =
        std::min(static_cast<int64_t>(fraction * static_cast<double>(windows.context)), windows.context - 1);
    std::optional<double> reference;
    for (const Method& method : inputs->methods) {
      StatusOr<Score> scored = method.exact ? scorer.Exact(prefix) : scorer.Decoded(method, prefix);
      // One of several that this model cannot serve is a row of its own; all ranks know.
      if (scored.status().code() == absl::StatusCode::kFailedPrecondition && IsAgreed(scored.status()) &&
          inputs->methods.size() > 1) {
        table.Add({method.ToString(), "refused: " + std::string(scored.status().message())});
        continue;
      }
      TESSERA_RETURN_IF_ERROR(scored.status());
      const Score& score = *scored;
      const double bits = score.bits / static_cast<double>(score.bytes);
      if (method.exact) reference = bits;
      TESSERA_ASSIGN_OR_RETURN(const auto cache, AllGatherValue(world, score.cache_bytes, "comparing caches"));
      table.Add({method.exact ? "exact (" + score.plan + ")" : method.ToString(),
                 absl::StrFormat("%.0f %%", fraction * 100), absl::StrCat(score.bytes), absl::StrFormat("%.4f", bits),
                 reference ? absl::StrFormat("%+.2f %%", (bits / *reference - 1) * 100) : "-",
                 method.exact ? "-" : absl::StrCat(*std::ranges::max_element(cache)), FormatSeconds(score.seconds),
                 absl::StrFormat("%.0f", static_cast<double>(score.bytes) / score.seconds)});
      records.push_back({{"schema", "tessera-score-1"},
                         {"model", flags.model},
                         {"text", flags.text},
                         {"context", windows.context},
                         {"windows", windows.count},
                         {"ranks", world.size()},
                         {"dtype", flags.dtype},
                         {"method", method.ToString()},
                         {"prefix_tokens", prefix},
                         {"bytes_scored", score.bytes},
                         {"bits_per_byte", bits},
                         {"cache_bytes_per_token_layer", cache},
                         {"seconds", score.seconds}});
    }
  }
  if (!flags.json.empty() && context.root()) {
    std::string lines;
    for (const auto& record : records) lines += record.dump() + "\n";
    TESSERA_RETURN_IF_ERROR(WriteAside(flags.json, lines));
  }
  return true;
}

}  // namespace

void AddScoreCommand(CLI::App& app, Selection& selection) {
  const auto flags = std::make_shared<Flags>();
  CLI::App* command = app.add_subcommand("score", "bits per byte of a text under a model with latent attention");
  command->add_option("--model", flags->model, "directory with config.json and safetensors, DeepSeek-V2 names")
      ->required();
  command->add_option("--text", flags->text, "text to score")->required();
  command->add_option("--context", flags->context, "tokens of a window (the model's positions unless given)")
      ->check(CLI::Range(int64_t{1}, kMostTokens));
  command->add_option("--windows", flags->windows, "score the first so many windows only")
      ->check(CLI::Range(int64_t{1}, kMostTokens));
  command
      ->add_option("--prefix", flags->prefixes,
                   "shares of each window that are prefilled exactly and not scored (comma-separated)")
      ->delimiter(',')
      ->check(CLI::Range(0.0, 1.0))
      ->default_str("0");
  command
      ->add_option("--query-tokens", flags->query_tokens,
                   "tokens decoded in one step (all that are left unless given; the result does not depend on it)")
      ->check(CLI::Range(int64_t{1}, kMostTokens));
  command->add_option("--dtype", flags->dtype, "of attention and cache; bf16 also rounds the projections")
      ->check(CLI::IsMember({"fp32", "bf16", "fp16"}))
      ->capture_default_str();
  command->add_option("--json", flags->json, "file to write a record per row to");
  AddMethodFlags(*command, flags->methods);
  AddStrategyFlag(*command, flags->execution);
  AddExecutionFlags(*command, flags->execution);
  command->footer(
      "Examples:\n"
      "  mpirun -n 2 tessera score --model launcher/data/kjv-mla --text launcher/data/kjv-heldout-64k.txt\n"
      "  mpirun -n 4 tessera score --model pca --text book.txt --method exact,head,tpla --groups 2,4 --prefix 0,0.9");
  command->callback([flags, &selection] {
    if (flags->prefixes.empty()) flags->prefixes.push_back(0);
    selection = {[flags](const Context& context) { return RunScore(*flags, context); },
                 flags->execution.deadline_seconds, /*needs_ranks=*/true};
  });
}

}  // namespace tessera::launcher
