// tessera balance: how evenly layouts share the work of packed documents, and what each makes the ranks send. Plans
// only.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <memory>
#include <random>

#include "launcher/command.h"
#include "launcher/table.h"
#include "partition/cost.h"
#include "partition/planner.h"

namespace tessera::launcher {
namespace {

struct Flags {
  int64_t tokens = 131072;
  int ranks = 8;
  uint64_t seed = 1;
};

// Long-tailed document lengths as training corpora have them.
struct Distribution {
  const char* name;
  std::function<double(std::mt19937_64&)> length;
};

std::vector<Distribution> Distributions() {
  const auto uniform = [](std::mt19937_64& g) { return std::uniform_real_distribution<double>(0, 1)(g); };
  return {
      {"log-normal, median 1K", [](auto& g) { return std::lognormal_distribution<double>(std::log(1024.0), 1.2)(g); }},
      {"Pareto, exponent 1.1", [uniform](auto& g) { return 128 * std::pow(1 - uniform(g), -1 / 1.1); }},
      {"exponential, mean 2K", [](auto& g) { return std::exponential_distribution<double>(1 / 2048.0)(g); }},
      {"chat and books",
       [uniform](auto& g) { return uniform(g) < 0.97 ? 64 + 448 * uniform(g) : 16384 * (1 + uniform(g)); }},
      {"power law to 64K", [uniform](auto& g) { return std::pow(65536.0, uniform(g)); }},
  };
}

// Boundaries of documents packed until `tokens` are full; the last one is cut.
std::vector<int64_t> Pack(const Distribution& distribution, const Flags& flags) {
  std::seed_seq seed = {static_cast<uint32_t>(flags.seed), static_cast<uint32_t>(flags.seed >> 32)};
  std::mt19937_64 generator(seed);
  std::vector<int64_t> boundaries = {0};
  while (boundaries.back() < flags.tokens) {
    const auto length = static_cast<int64_t>(std::llround(std::max(1.0, distribution.length(generator))));
    boundaries.push_back(std::min(flags.tokens, boundaries.back() + length));
  }
  return boundaries;
}

// The largest share of the mask's area over the mean.
double Imbalance(const PlanSpec& spec) {
  double most = 0;
  const Mask& mask = spec.problem.mask;
  for (int rank = 0; rank < spec.query_layout.ranks(); ++rank) {
    double area = 0;
    for (const Segment& s : spec.query_layout.segments(rank)) area += mask.Area(s, {0, spec.problem.key_tokens, 1});
    most = std::max(most, area);
  }
  return most * spec.query_layout.ranks() / mask.Area();
}

StatusOr<bool> Balance(const Flags& flags) {
  Table table({"documents", "count", "longest", "layout", "max/mean area", "bytes received"});
  for (const Distribution& distribution : Distributions()) {
    const std::vector<int64_t> boundaries = Pack(distribution, flags);
    int64_t longest = 0;
    for (size_t i = 1; i < boundaries.size(); ++i) longest = std::max(longest, boundaries[i] - boundaries[i - 1]);
    Problem problem;
    problem.query_tokens = problem.key_tokens = flags.tokens;
    problem.query_heads = problem.kv_heads = 8;
    problem.qk_width = problem.v_width = 128;
    TESSERA_ASSIGN_OR_RETURN(problem.mask, Mask::Documents(flags.tokens, boundaries, SliceType::kCausal));
    for (const char* strategy : {"ring", "zigzag", "striped", "balanced"}) {
      TESSERA_ASSIGN_OR_RETURN(const PlanSpec spec,
                               MakePlanSpec(problem, {.strategy = strategy, .ranks = flags.ranks}));
      table.Add({distribution.name, absl::StrCat(boundaries.size() - 1), absl::StrCat(longest),
                 std::string(strategy) == "ring" ? "contiguous" : strategy, absl::StrFormat("%.3f", Imbalance(spec)),
                 FormatBytes(static_cast<double>(PredictedBytes(spec)))});
    }
  }
  std::printf("%d tokens of packed documents, causal within each, on %d ranks; K/V of 8 heads of 128, bf16\n",
              static_cast<int>(flags.tokens), flags.ranks);
  std::fputs(table.ToString().c_str(), stdout);
  return true;
}

}  // namespace

void AddBalanceCommand(CLI::App& app, Selection& selection) {
  const auto flags = std::make_shared<Flags>();
  CLI::App* command = app.add_subcommand("balance", "how evenly layouts share packed documents, and what they send");
  command->add_option("--tokens", flags->tokens, "packed length")->capture_default_str()->check(CLI::Range(1, 1 << 24));
  command->add_option("--ranks", flags->ranks, "ranks to share among")
      ->capture_default_str()
      ->check(CLI::Range(1, 4096));
  command->add_option("--seed", flags->seed, "seed of the document lengths")->capture_default_str();
  command->footer("Example:\n  tessera balance --tokens 131072 --ranks 8");
  command->callback([flags, &selection] {
    selection = {[flags](const Context&) { return Balance(*flags); }, 0, /*needs_ranks=*/false};
  });
}

}  // namespace tessera::launcher
