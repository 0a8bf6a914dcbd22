#include "launcher/problem_flags.h"

#include <charconv>
#include <fstream>
#include <limits>
#include <optional>

#include "kernels/attention.h"

namespace tessera::launcher {
namespace {

constexpr char kStrategies[] =
    "auto, all, ring, zigzag, striped, balanced, allgather, ulysses, grid[:HxS], double-ring[:NODES], tree";

constexpr int kMostOfAnAxis = 1 << 20;  // far more heads, or width, than a problem may have

std::optional<int64_t> ParseInteger(std::string_view text) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

StatusOr<std::vector<int64_t>> ReadIntegers(const std::string& path) {
  std::ifstream file(path);
  if (!file) return absl::NotFoundError(absl::StrCat("cannot open document boundaries ", path));
  std::vector<int64_t> values;
  for (std::string word; file >> word;) {
    const std::optional<int64_t> value = ParseInteger(word);
    if (!value) {
      constexpr size_t kShown = 40;
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": boundary ", values.size(), " is \"", word.substr(0, kShown), "\"; allowed: integers"));
    }
    values.push_back(*value);
  }
  return values;
}

bool IsCount(std::string_view text) {
  const std::optional<int64_t> value = ParseInteger(text);
  return value && *value >= 1 && *value <= std::numeric_limits<int>::max();
}

// Empty when `text` is a strategy; whether it can serve is for the planner to say.
std::string CheckStrategyName(const std::string& text) {
  if (text == "auto" || text == "all") return "";
  const std::string_view name = text;
  const size_t colon = name.find(':');
  const std::string_view family = name.substr(0, colon);
  const std::string_view argument = colon == std::string_view::npos ? "" : name.substr(colon + 1);
  const auto refuse = [&](const char* allowed) { return absl::StrCat("\"", text, "\"; allowed: ", allowed); };
  if (family == "grid" && colon != std::string_view::npos) {
    const size_t cross = argument.find('x');
    const bool good =
        cross != std::string_view::npos && IsCount(argument.substr(0, cross)) && IsCount(argument.substr(cross + 1));
    return good ? "" : refuse("grid:HxS, head ranks by sequence ranks, such as grid:2x4");
  }
  if (family == "double-ring" && colon != std::string_view::npos) {
    return IsCount(argument) ? "" : refuse("double-ring:NODES, such as double-ring:2");
  }
  for (const std::string& known : StrategyNames(4)) {  // of four ranks: every family is among them
    if (colon == std::string_view::npos && name == std::string_view(known).substr(0, known.find(':'))) return "";
  }
  return refuse(kStrategies);
}

}  // namespace

void AddMaskFlags(CLI::App& command, ProblemFlags& flags) {
  command.add_option("--mask", flags.mask, "causal, full, window:W or documents:FILE")->capture_default_str();
  command.add_option("--scale", flags.scale, "softmax scale; 0 = width^-1/2")->capture_default_str();
  command.add_option("--soft-cap", flags.soft_cap, "cap C: scores become C tanh(s / C); 0 = off")
      ->capture_default_str();
}

void AddShapeFlags(CLI::App& command, ProblemFlags& flags) {
  command.add_option("--seq", flags.tokens, "tokens")->required()->check(CLI::Range(int64_t{0}, kMostTokens));
  command.add_option("--heads", flags.heads, "query heads")->capture_default_str()->check(CLI::Range(1, kMostOfAnAxis));
  command.add_option("--kv-heads", flags.kv_heads, "key/value heads (default: as --heads)")
      ->check(CLI::Range(1, kMostOfAnAxis));
  command.add_option("--dim", flags.width, "width of q and k heads")
      ->capture_default_str()
      ->check(CLI::Range(1, kMostOfAnAxis));
  command.add_option("--v-dim", flags.v_width, "width of v heads (default: as --dim)")
      ->check(CLI::Range(1, kMostOfAnAxis));
  command.add_option("--dtype", flags.dtype, "fp32, bf16, fp16 or fp64 (the reference kernel only)")
      ->capture_default_str()
      ->check(CLI::IsMember({"fp32", "bf16", "fp16", "fp64"}));
}

void AddStrategyFlag(CLI::App& command, ExecutionFlags& flags) {
  command.add_option("--strategy", flags.strategy, kStrategies)
      ->capture_default_str()
      ->check([](const std::string& text) { return CheckStrategyName(text); });
}

void AddExecutionFlags(CLI::App& command, ExecutionFlags& flags) {
  command.add_option("--kernel", flags.kernel, "attention kernel by name; see `tessera doctor` (default: the fastest)");
  command.add_option("--threads", flags.threads, "compute threads per rank (default: cores / ranks on the node)")
      ->check(CLI::Range(1, 4096));
  command
      .add_option("--deadline", flags.deadline_seconds,
                  "longest silence of a peer, in seconds (default: TESSERA_DEADLINE_SECONDS or 30)")
      ->check(CLI::Range(0.1, 86400.0));
}

void AddDeviceFlag(CLI::App& command, ExecutionFlags& flags) {
  command
      .add_option_function<std::string>(
          "--device",
          [&flags](const std::string& name) { flags.device = name == "cuda" ? Device::kCuda : Device::kCpu; },
          "where attention is computed: on CPUs, or on one GPU per rank")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->default_str("cpu");
}

StatusOr<Mask> ParseMask(const std::string& text, int64_t query_tokens, int64_t key_tokens) {
  if (text == "causal") return Mask::Causal(query_tokens, key_tokens);
  if (text == "full") return Mask::Full(query_tokens, key_tokens);
  const size_t colon = text.find(':');
  const std::string kind = text.substr(0, colon);
  const std::string argument = colon == std::string::npos ? "" : text.substr(colon + 1);
  if (kind == "window") {
    const std::optional<int64_t> width = ParseInteger(argument);
    if (!width || *width < 1) {
      return absl::InvalidArgumentError(
          absl::StrCat("mask \"", text, "\": the window is \"", argument, "\"; allowed: 1 or more tokens"));
    }
    return Mask::Causal(query_tokens, key_tokens, Window{.left = *width - 1, .right = 0});
  }
  if (kind == "documents") {
    if (argument.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("mask \"", text, "\": the file name is missing; allowed: documents:FILE"));
    }
    if (query_tokens != key_tokens) {
      return absl::InvalidArgumentError(absl::StrCat("mask \"", text, "\" needs as many query as key tokens, not ",
                                                     query_tokens, " and ", key_tokens));
    }
    TESSERA_ASSIGN_OR_RETURN(const std::vector<int64_t> boundaries, ReadIntegers(argument));
    StatusOr<Mask> mask = Mask::Documents(query_tokens, boundaries, SliceType::kCausal);
    if (mask.ok()) return mask;
    return Status(mask.status().code(), absl::StrCat(argument, ": ", std::string(mask.status().message())));
  }
  return absl::InvalidArgumentError(
      absl::StrCat("mask \"", text, "\" is unknown; allowed: causal, full, window:W, documents:FILE"));
}

std::string DocumentsFile(const std::string& mask) {
  constexpr std::string_view kPrefix = "documents:";
  return mask.starts_with(kPrefix) ? mask.substr(kPrefix.size()) : "";
}

Status CompleteProblem(const ProblemFlags& flags, Problem& problem) {
  TESSERA_ASSIGN_OR_RETURN(problem.mask, ParseMask(flags.mask, problem.query_tokens, problem.key_tokens));
  problem.score.scale = flags.scale;
  problem.score.soft_cap = flags.soft_cap;
  return Validate(problem);
}

StatusOr<Problem> MakeProblem(const ProblemFlags& flags) {
  Problem problem;
  problem.query_tokens = flags.tokens;
  problem.key_tokens = flags.tokens;
  problem.query_heads = flags.heads;
  problem.kv_heads = flags.kv_heads > 0 ? flags.kv_heads : flags.heads;
  problem.qk_width = flags.width;
  problem.v_width = flags.v_width > 0 ? flags.v_width : flags.width;
  problem.dtype = ParseDType(flags.dtype).value_or(DType::kBFloat16);
  TESSERA_RETURN_IF_ERROR(CompleteProblem(flags, problem));
  return problem;
}

Status CheckKernel(const Problem& problem, const std::string& kernel) {
  const Status status = FindAttentionKernel({problem.dtype, problem.qk_width, problem.v_width}, kernel).status();
  return status.ok() ? status : absl::FailedPreconditionError(status.message());
}

std::vector<Candidate> ResolveStrategies(const Problem& problem, const std::string& strategy, int ranks,
                                         int ranks_per_node) {
  const std::vector<std::string> names = strategy == "all" ? StrategyNames(ranks) : std::vector<std::string>{strategy};
  std::vector<Candidate> candidates;
  for (const std::string& name : names) {
    candidates.push_back({name, MakePlanSpec(problem, {name, ranks, ranks_per_node})});
  }
  return candidates;
}

std::string Label(const Candidate& candidate) {
  if (!candidate.spec.ok() || candidate.spec->strategy == candidate.strategy) return candidate.strategy;
  return absl::StrCat(candidate.strategy, " = ", candidate.spec->strategy);
}

Status AnyUsable(const std::vector<Candidate>& candidates) {
  std::string reasons;
  for (const Candidate& candidate : candidates) {
    if (candidate.spec.ok()) return absl::OkStatus();
    absl::StrAppend(&reasons, reasons.empty() ? "" : "; ", std::string(candidate.spec.status().message()));
  }
  // Well formed but not servable: FailedPrecondition is what becomes the "refused" exit code.
  return absl::FailedPreconditionError(reasons.empty() ? "no strategy exists for this many ranks" : reasons);
}

}  // namespace tessera::launcher
