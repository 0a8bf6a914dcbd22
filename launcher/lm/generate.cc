// tessera generate: continues a text with a language model, decoding over all ranks.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <numeric>
#include <random>

#include "collectives/agreement.h"
#include "launcher/command.h"
#include "launcher/lm/decode_runner.h"
#include "launcher/lm/method.h"
#include "launcher/lm/text.h"
#include "launcher/problem_flags.h"
#include "launcher/progress.h"

namespace tessera::launcher {
namespace {

struct Flags {
  std::string model;
  std::string prompt;
  int64_t tokens = 200;
  double temperature = 0.8;
  int top_k = 0;
  uint64_t seed = 1;
  std::string dtype = "fp32";
  MethodFlags methods{"auto"};
  ExecutionFlags execution;
};

// Draws from softmax(logits / temperature) over the `top_k` most likely tokens; `uniform` in [0, 1). Temperature 0
// takes the likeliest.
int Sample(std::span<const float> logits, double temperature, int top_k, double uniform) {
  std::vector<int> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, std::greater<>(), [&](int token) { return logits[token]; });
  if (temperature <= 0) return order[0];
  if (top_k > 0 && top_k < static_cast<int>(order.size())) order.resize(top_k);
  std::vector<double> cumulative;
  double sum = 0;
  for (int token : order) cumulative.push_back(sum += std::exp((logits[token] - logits[order[0]]) / temperature));
  const auto drawn = std::ranges::upper_bound(cumulative, uniform * sum);
  return order[std::min<size_t>(drawn - cumulative.begin(), order.size() - 1)];
}

StatusOr<std::vector<int>> MakePrompt(const Flags& flags, const ModelConfig& config) {
  TESSERA_ASSIGN_OR_RETURN(std::vector<int> prompt, Tokenize(flags.prompt, config));
  if (prompt.empty()) return absl::InvalidArgumentError("--prompt is empty; at least one byte is needed");
  if (static_cast<int64_t>(prompt.size()) + flags.tokens > config.max_positions) {
    return absl::InvalidArgumentError(
        absl::StrFormat("--prompt of %d tokens and --tokens %d: the model supports %d positions", prompt.size(),
                        flags.tokens, config.max_positions));
  }
  return prompt;
}

StatusOr<bool> RunGenerate(const Flags& flags, const Context& context) {
  Communicator& world = *context.world;
  Progress progress(context.root());
  const ExactOptions exact = MakeExactOptions(flags.execution, flags.dtype, context);
  progress.Say("loading " + flags.model);
  StatusOr<LoadedModel> loaded = LoadModel(flags.model, exact.compute, exact.threads);
  TESSERA_RETURN_IF_ERROR(AgreeOnStatus(world, loaded.status(), "loading the model"));
  TESSERA_RETURN_IF_ERROR(AgreeOnStatus(world, CheckAttentionKernel(loaded->config, exact), "choosing a kernel"));
  StatusOr<std::vector<int>> prompt = MakePrompt(flags, loaded->config);
  TESSERA_RETURN_IF_ERROR(AgreeOnStatus(world, prompt.status(), "checking the prompt"));
  StatusOr<std::vector<Method>> methods = ResolveMethods(
      flags.methods,
      DecodeProblemOf(loaded->config.attention, static_cast<int64_t>(prompt->size()) + flags.tokens, 1, 1, exact.dtype),
      world.size());
  TESSERA_RETURN_IF_ERROR(AgreeOnStatus(world, methods.status(), "choosing a method"));
  const Method& method = methods->front();
  StatusOr<std::vector<TplaFactors>> factors = FactorsOf(method, *loaded);
  TESSERA_RETURN_IF_ERROR(AgreeOnStatus(world, factors.status(), "reading what the conversion recorded"));

  const MlaDecoderOptions options =
      MakeDecoderOptions(*loaded, method, exact, world.size(), 1, static_cast<int64_t>(prompt->size()) + flags.tokens);
  TESSERA_ASSIGN_OR_RETURN(const auto runner, DecodeRunner::Create(world, *loaded, options, *factors));

  // All of the prompt but its last token is prefilled; that one is the first to be decoded.
  SequenceId sequence = 0;
  const int64_t prefix = static_cast<int64_t>(prompt->size()) - 1;
  if (prefix > 0) {
    progress.Say("reading the prompt");
    TESSERA_ASSIGN_OR_RETURN(const auto prefill, ExactRunner::Create(world, *loaded, exact));
    const std::span<const int> document(prompt->data(), prefix);
    TESSERA_ASSIGN_OR_RETURN(const ExactResult result, prefill->Run({&document, 1}, /*keep_cache_rows=*/true));
    TESSERA_ASSIGN_OR_RETURN(const auto sequences, runner->TakeOver(result));
    sequence = sequences[0];
  } else {
    sequence = runner->decoder().Start();
  }
  progress.Say("");
  if (context.root()) std::fputs(flags.prompt.c_str(), stdout);
  std::mt19937_64 random(flags.seed);
  int token = prompt->back();
  for (int64_t i = 0; i < flags.tokens; ++i) {
    const StepTokens step{sequence, 1};
    StatusOr<std::vector<float>> hidden = runner->Step({&step, 1}, {&token, 1});
    TESSERA_RETURN_IF_ERROR(AgreeOnStatus(world, hidden.status(), "decoding"));
    TESSERA_ASSIGN_OR_RETURN(const std::vector<float> logits, loaded->language.Logits(*hidden));
    // One rank draws, so that no rounding can let the ranks' texts part.
    if (context.root()) {
      token = Sample(logits, flags.temperature, flags.top_k, static_cast<double>(random() >> 11) * 0x1p-53);
      std::fputc(token, stdout);
      std::fflush(stdout);
    }
    TESSERA_ASSIGN_OR_RETURN(Request request, world.Broadcast(std::as_writable_bytes(std::span(&token, 1)), 0));
    TESSERA_RETURN_IF_ERROR(Wait(world, request, "the next token"));
  }
  if (context.root()) std::fputc('\n', stdout);
  return true;
}

}  // namespace

void AddGenerateCommand(CLI::App& app, Selection& selection) {
  const auto flags = std::make_shared<Flags>();
  CLI::App* command = app.add_subcommand("generate", "continue a text with a model with latent attention");
  command->add_option("--model", flags->model, "directory with config.json and safetensors, DeepSeek-V2 names")
      ->required();
  command->add_option("--prompt", flags->prompt, "text to continue")->required();
  command->add_option("--tokens", flags->tokens, "tokens to generate")
      ->check(CLI::Range(int64_t{1}, kMostTokens))
      ->capture_default_str();
  command->add_option("--temperature", flags->temperature, "of the sampling; 0 takes the likeliest token")
      ->check(CLI::Range(0.0, 100.0))
      ->capture_default_str();
  command->add_option("--top-k", flags->top_k, "sample from the so many likeliest tokens only; 0 = all")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
  command->add_option("--seed", flags->seed, "of the sampling; the same seed gives the same text")
      ->capture_default_str();
  command->add_option("--dtype", flags->dtype, "of attention and cache; bf16 also rounds the projections")
      ->check(CLI::IsMember({"fp32", "bf16", "fp16"}))
      ->capture_default_str();
  AddMethodFlags(*command, flags->methods);
  AddStrategyFlag(*command, flags->execution);
  AddExecutionFlags(*command, flags->execution);
  command->footer(
      "Example:\n"
      "  mpirun -n 2 tessera generate --model launcher/data/kjv-mla --prompt 'In the beginning ' --method tpla");
  command->callback([flags, &selection] {
    const auto& methods = flags->methods.methods;
    if (methods.size() != 1 || methods[0] == "all" || methods[0] == "exact" || flags->methods.groups.size() > 1 ||
        flags->methods.multipliers.size() != 1 || flags->methods.norms.size() != 1) {
      throw CLI::ValidationError("generate", "needs one --method that decodes, one of --groups, --mu and --norm");
    }
    selection = {[flags](const Context& context) { return RunGenerate(*flags, context); },
                 flags->execution.deadline_seconds, /*needs_ranks=*/true};
  });
}

}  // namespace tessera::launcher
