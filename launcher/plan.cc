// tessera plan: what a plan would do and cost on any number of ranks, without running it.
#include <cstdio>
#include <memory>

#include "launcher/command.h"
#include "launcher/machine_flags.h"
#include "launcher/plan_decode.h"
#include "launcher/problem_flags.h"
#include "launcher/table.h"
#include "partition/cost.h"
#include "partition/print.h"
#include "partition/verify.h"

namespace tessera::launcher {
namespace {

// Programs of all ranks grow with the square of their number; beyond these sizes only what needs no programs is shown.
constexpr int kMaxRanksBuilt = 256;
constexpr int kMaxRanksVerified = 64;
constexpr int kMaxRanksPredicted = 4096;
constexpr int kMaxRanksListed = 16;
constexpr int kTimelineColumns = 100;

struct Flags {
  ProblemFlags problem;
  ExecutionFlags execution;
  MachineModel machine;
  int ranks = 1;
  bool json = false;
  bool timeline = false;
};

void PrintRanks(const PlanCost& cost) {
  Table table({"rank", "messages sent", "bytes sent", "messages received", "bytes received", "GFLOP", "slots"});
  for (size_t rank = 0; rank < cost.ranks.size(); ++rank) {
    const RankCost& one = cost.ranks[rank];
    table.Add({absl::StrCat(rank), absl::StrCat(one.messages_sent), absl::StrCat(one.bytes_sent),
               absl::StrCat(one.messages_received), absl::StrCat(one.bytes_received),
               absl::StrFormat("%.3f", one.flops / 1e9), FormatBytes(static_cast<double>(one.slot_bytes))});
  }
  std::fputs(table.ToString().c_str(), stdout);
}

// The parts that need every rank's program. False when the plan is wrong.
bool PrintPrograms(const Plan& plan, const Flags& flags) {
  bool right = true;
  if (plan.spec.mesh.size() <= kMaxRanksVerified) {
    const Status verified = Verify(plan);
    right = verified.ok();
    std::printf("verified   %s\n", right ? "every pair once, messages matched, no deadlock, no slot conflict"
                                         : std::string(verified.message()).c_str());
  } else {
    std::printf("verified   not attempted above %d ranks\n", kMaxRanksVerified);
  }
  const PlanCost cost = CountPlan(plan);
  const RankCost total = cost.Total(), largest = cost.Max();
  const int64_t closed_form = PredictedBytes(plan.spec);
  right = right && closed_form == total.bytes_received;
  std::printf("bytes      %lld counted from steps, %lld by closed form%s\n",
              static_cast<long long>(total.bytes_received), static_cast<long long>(closed_form),
              closed_form == total.bytes_received ? "" : ": THEY DIFFER");
  std::printf("memory     %s of slots on the fullest rank\n",
              FormatBytes(static_cast<double>(largest.slot_bytes)).c_str());
  std::printf("balance    busiest rank computes %.3f times the mean\n",
              total.flops > 0 ? largest.flops * static_cast<double>(cost.ranks.size()) / total.flops : 1.0);
  const Price price = Simulate(plan, flags.machine);
  std::printf("predicted  %s: %s compute, %s exposed communication (simulated)\n", FormatSeconds(price.seconds).c_str(),
              FormatSeconds(price.compute_seconds).c_str(), FormatSeconds(price.exposed_communication_seconds).c_str());
  if (plan.spec.mesh.size() <= kMaxRanksListed) PrintRanks(cost);
  if (flags.timeline) std::fputs(DrawTimeline(plan, price, kTimelineColumns).c_str(), stdout);
  return right;
}

StatusOr<bool> PrintPlan(const Flags& flags, const Context&) {
  TESSERA_ASSIGN_OR_RETURN(const Problem problem, MakeProblem(flags.problem));
  const std::vector<Candidate> candidates =
      ResolveStrategies(problem, flags.execution.strategy, flags.ranks, flags.machine.ranks_per_node);
  TESSERA_RETURN_IF_ERROR(AnyUsable(candidates));
  const bool build = flags.ranks <= kMaxRanksBuilt;
  if ((flags.json || flags.timeline) && !build) {
    return absl::FailedPreconditionError(
        absl::StrCat("--json and --timeline list every step; allowed: up to ", kMaxRanksBuilt, " ranks"));
  }
  bool right = true;
  for (const Candidate& candidate : candidates) {
    if (!candidate.spec.ok()) {
      std::printf("%s: refused: %s\n\n", candidate.strategy.c_str(),
                  std::string(candidate.spec.status().message()).c_str());
      continue;
    }
    if (flags.json) {
      std::printf("%s\n", ToJson(BuildPlan(*candidate.spec)).c_str());
      continue;
    }
    std::printf("plan       %s\n", ToString(*candidate.spec).c_str());
    if (build) {
      right = PrintPrograms(BuildPlan(*candidate.spec), flags) && right;
    } else if (flags.ranks <= kMaxRanksPredicted) {
      std::printf("bytes      %lld by closed form\n", static_cast<long long>(PredictedBytes(*candidate.spec)));
    }
    std::printf("predicted  %s (closed-form estimate)\n\n",
                FormatSeconds(EstimateSeconds(*candidate.spec, flags.machine)).c_str());
  }
  return right;
}

}  // namespace

void AddPlanCommand(CLI::App& app, Selection& selection) {
  const auto flags = std::make_shared<Flags>();
  CLI::App* command = app.add_subcommand("plan", "what a plan would do and cost, without running it");
  AddShapeFlags(*command, flags->problem);
  AddMaskFlags(*command, flags->problem);
  AddStrategyFlag(*command, flags->execution);
  command->add_option("--ranks", flags->ranks, "ranks to plan for")->required()->check(CLI::Range(1, kMaxRanks));
  command->add_flag("--json", flags->json, "print the whole plan as JSON");
  command->add_flag("--timeline", flags->timeline, "draw who computes and sends when (predicted)");
  AddMachineFlags(*command, flags->machine);
  const CLI::App* decode = AddPlanDecodeCommand(*command, selection);
  command->footer(
      "Examples:\n"
      "  tessera plan --seq 4096 --ranks 4 --strategy zigzag --timeline\n"
      "  tessera plan --seq 1048576 --heads 32 --kv-heads 8 --dim 128 --ranks 65536 --strategy grid:8x8192\n"
      "  tessera plan --seq 1024 --ranks 4 --strategy all");
  command->callback([command, decode, flags, &selection] {
    if (command->got_subcommand(decode)) return;  // which has filled the selection
    selection = {[flags](const Context& context) { return PrintPlan(*flags, context); }, 0, /*needs_ranks=*/false};
  });
}

}  // namespace tessera::launcher
