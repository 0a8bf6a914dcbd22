// tessera plan decode: what one decode step of a layer would cost under every method, without running it.
#include "launcher/plan_decode.h"

#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "launcher/lm/decode_shapes.h"
#include "launcher/machine_flags.h"
#include "launcher/table.h"
#include "partition/decode_price.h"
#include "partition/print.h"
#include "partition/verify.h"

namespace tessera::launcher {
namespace {

constexpr int kMaxRanksBuilt = 256;  // every rank's program names every other rank
constexpr int kMaxRanksListed = 16;
constexpr int kTimelineColumns = 100;

struct Flags {
  std::string model = "deepseek-v3";
  DecodeProblem problem;  // context, batch and blocks; the layer is the model's
  std::string dtype = "bf16";
  std::string method = "all";
  int groups = 0;
  int ranks = 1;
  MachineModel machine;
  bool json = false;
  bool timeline = false;
};

// The model's layer under a batch that the flags give.
StatusOr<DecodeProblem> ProblemOf(const Flags& flags) {
  TESSERA_ASSIGN_OR_RETURN(const DecodeShape shape, ParseDecodeShape(flags.model));
  DecodeProblem problem = LayerProblem(shape);
  problem.context_tokens = flags.problem.context_tokens;
  problem.batch = flags.problem.batch;
  problem.query_tokens = flags.problem.query_tokens;
  problem.block_tokens = flags.problem.block_tokens;
  problem.dtype = ParseDType(flags.dtype).value_or(DType::kBFloat16);
  return problem;
}

std::string TitleOf(const DecodePrice& price) {
  std::string title(Name(price.spec.method));
  if (price.spec.method == DecodeMethod::kTpla) absl::StrAppend(&title, ":", price.spec.groups);
  return title;
}

nlohmann::ordered_json ToRecord(const DecodePrice& price, bool chosen) {
  return {{"method", std::string(Name(price.spec.method))},
          {"groups", price.spec.groups},
          {"exact", price.exact},
          {"chosen", chosen},
          {"predicted_seconds", price.seconds()},
          {"predicted_projection_seconds", price.projection_seconds},
          {"predicted_attention_seconds", price.attention_seconds},
          {"predicted_exchange_seconds", price.exchange_seconds},
          {"predicted_slice_seconds", price.slice_seconds},
          {"predicted_all_reduce_seconds", price.all_reduce_seconds},
          {"exchange_bytes", price.exchange_bytes},
          {"slice_bytes", price.slice_bytes},
          {"all_reduce_bytes", price.all_reduce_bytes},
          {"cache_bytes_per_token_layer_rank", price.cache_bytes_per_token},
          {"cache_bytes_layer_rank", price.cache_bytes},
          {"weight_bytes_layer_rank", price.weight_bytes}};
}

void PrintTable(const std::vector<DecodePrice>& prices, const DecodePrice& choice) {
  Table table({"method", "result", "predicted", "projections", "attention", "exchange", "all-reduce", "bytes moved",
               "cache B/token/rank", "cache/rank", "weights/rank"});
  for (const DecodePrice& price : prices) {
    table.Add({TitleOf(price) + (price.spec == choice.spec ? " (auto)" : ""), price.exact ? "exact" : "approximate",
               FormatSeconds(price.seconds()), FormatSeconds(price.projection_seconds),
               FormatSeconds(price.attention_seconds), FormatSeconds(price.exchange_seconds + price.slice_seconds),
               FormatSeconds(price.all_reduce_seconds),
               absl::StrCat(price.exchange_bytes + price.slice_bytes + price.all_reduce_bytes),
               absl::StrFormat("%.1f", price.cache_bytes_per_token),
               FormatBytes(static_cast<double>(price.cache_bytes)),
               FormatBytes(static_cast<double>(price.weight_bytes))});
  }
  std::fputs(table.ToString().c_str(), stdout);
}

// The steps of one method's plan. False when the plan is wrong.
bool PrintProgram(const DecodeProblem& problem, const DecodePrice& price, const Flags& flags) {
  const DecodePlan plan = BuildDecodePlan(price.spec);
  const Status verified = Verify(plan);
  const PlanCost cost = CountPlan(plan);
  const RankCost total = cost.Total();
  const bool right = verified.ok() && total.bytes_received == price.exchange_bytes;
  std::printf("\nplan       %s\n", ToString(price.spec).c_str());
  std::printf("verified   %s\n", verified.ok() ? "every part of the cache once, messages matched, no deadlock, no slot "
                                                 "conflict"
                                               : std::string(verified.message()).c_str());
  std::printf("bytes      %lld counted from steps, %lld by closed form%s\n",
              static_cast<long long>(total.bytes_received), static_cast<long long>(price.exchange_bytes),
              total.bytes_received == price.exchange_bytes ? "" : ": THEY DIFFER");
  std::printf("memory     %s of slots on the fullest rank\n",
              FormatBytes(static_cast<double>(cost.Max().slot_bytes)).c_str());
  const Price simulated = Simulate(plan, flags.machine, AttendSeconds(problem, price.spec, flags.machine));
  std::printf("predicted  %s of attention and exchange (simulated)\n", FormatSeconds(simulated.seconds).c_str());
  if (plan.spec.ranks <= kMaxRanksListed) {
    for (const RankProgram& program : plan.programs) {
      std::printf("rank %d\n", program.rank);
      for (StepId step = 0; step < static_cast<StepId>(program.steps.size()); ++step) {
        std::printf("  %d %s\n", step, ToString(program, step).c_str());
      }
    }
  }
  if (flags.timeline) std::fputs(DrawTimeline(plan, simulated, kTimelineColumns).c_str(), stdout);
  return right;
}

StatusOr<std::vector<DecodePrice>> PricesFor(const DecodeProblem& problem, const Flags& flags,
                                             const DecodePrice& choice) {
  if (flags.method == "all") return PriceDecodeMethods(problem, flags.ranks, flags.machine);
  if (flags.method == "auto") return std::vector<DecodePrice>{choice};
  TESSERA_ASSIGN_OR_RETURN(const DecodeMethod method, ParseDecodeMethod(flags.method));
  int groups = flags.groups;
  if (groups == 0) groups = method == DecodeMethod::kTpla ? flags.ranks : 1;
  TESSERA_ASSIGN_OR_RETURN(DecodePrice price, PriceDecode(problem, method, flags.ranks, groups, flags.machine));
  return std::vector<DecodePrice>{std::move(price)};
}

StatusOr<bool> PrintDecode(const Flags& flags) {
  TESSERA_ASSIGN_OR_RETURN(const DecodeProblem problem, ProblemOf(flags));
  TESSERA_ASSIGN_OR_RETURN(const DecodePrice choice, ChooseDecodeMethod(problem, flags.ranks, flags.machine));
  TESSERA_ASSIGN_OR_RETURN(const std::vector<DecodePrice> prices, PricesFor(problem, flags, choice));
  const bool one = flags.method != "all";
  if ((flags.timeline || (one && flags.json)) && flags.ranks > kMaxRanksBuilt) {
    return absl::FailedPreconditionError(absl::StrCat(
        "--timeline, and --json of one method, list every step; allowed: up to ", kMaxRanksBuilt, " ranks"));
  }
  if (flags.timeline && !one) {
    return absl::InvalidArgumentError("--timeline draws one method; name it with --method, or choose auto");
  }
  if (flags.json) {
    nlohmann::ordered_json records = nlohmann::ordered_json::array();
    for (const DecodePrice& price : prices) records.push_back(ToRecord(price, price.spec == choice.spec));
    nlohmann::ordered_json document{{"schema", "tessera-decode-price-1"},
                                    {"problem", problem.ToString()},
                                    {"ranks", flags.ranks},
                                    {"methods", std::move(records)}};
    if (one) document["plan"] = nlohmann::ordered_json::parse(ToJson(BuildDecodePlan(prices[0].spec)));
    std::printf("%s\n", document.dump().c_str());
    return true;
  }
  std::printf("layer      %s\nranks      %d\n", problem.ToString().c_str(), flags.ranks);
  std::printf("times      predicted from the machine's rates, per step of one layer, on the busiest rank\n\n");
  PrintTable(prices, choice);
  return !one || flags.ranks > kMaxRanksBuilt || PrintProgram(problem, prices[0], flags);
}

std::vector<std::string> MethodNames() {
  std::vector<std::string> names = {"all", "auto"};
  for (const DecodeMethod method : AllDecodeMethods()) names.emplace_back(Name(method));
  return names;
}

}  // namespace

const CLI::App* AddPlanDecodeCommand(CLI::App& plan, Selection& selection) {
  const auto flags = std::make_shared<Flags>();
  DecodeProblem& problem = flags->problem;
  problem.context_tokens = 32768;
  CLI::App* command = plan.add_subcommand("decode", "what one decode step of a layer would cost under every method");
  // The flags that plan itself cannot do without are not this command's.
  command->preparse_callback([&plan](size_t) {
    for (CLI::Option* option : plan.get_options()) option->required(false);
  });
  command->add_option("--model", flags->model, "the layer: one of " + DecodeShapeHelp())->capture_default_str();
  command->add_option("--ranks", flags->ranks, "ranks to plan for")->required()->check(CLI::Range(1, kMaxRanks));
  command->add_option("--context", problem.context_tokens, "cached tokens of each sequence")->capture_default_str();
  command->add_option("--batch", problem.batch, "sequences")->capture_default_str();
  command->add_option("--query-tokens", problem.query_tokens, "new tokens of each sequence")->capture_default_str();
  command->add_option("--dtype", flags->dtype, "of weights, queries and cache: fp32, bf16 or fp16")
      ->capture_default_str()
      ->check(CLI::IsMember({"fp32", "bf16", "fp16"}));
  command->add_option("--block-tokens", problem.block_tokens, "of caches sharded by tokens")->capture_default_str();
  command->add_option("--method", flags->method, "all, auto, or one, whose plan is shown")
      ->capture_default_str()
      ->check(CLI::IsMember(MethodNames()));
  command->add_option("--groups", flags->groups, "of tpla: latent groups; 0 = as many as ranks")->capture_default_str();
  command->add_flag("--json", flags->json, "print JSON; of one method, with its plan");
  command->add_flag("--timeline", flags->timeline, "draw who computes and sends when, of one method (predicted)");
  AddMachineFlags(*command, flags->machine);
  command->footer(
      "Examples:\n"
      "  tessera plan decode --model deepseek-v3 --context 32768 --ranks 8\n"
      "  tessera plan decode --model kimi-k2 --ranks 2 --method tpla --groups 2 --timeline\n"
      "  tessera plan decode --model llama-3-8b --batch 16 --ranks 4 --method auto");
  command->callback([flags, &selection] {
    selection = {[flags](const Context&) { return PrintDecode(*flags); }, 0, /*needs_ranks=*/false};
  });
  return command;
}

}  // namespace tessera::launcher
