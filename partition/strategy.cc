// Strategy names to specs.
#include <charconv>
#include <cmath>
#include <limits>
#include <optional>

#include "partition/cost.h"
#include "partition/planner.h"

namespace tessera {
namespace {

constexpr int kMaxRanks = 1 << 16;

std::optional<int> ParseCount(std::string_view text) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 1 || value > kMaxRanks) return std::nullopt;
  return value;
}

// The largest divisor of n that is at most `limit`.
int LargestDivisor(int n, int limit) {
  for (int d = std::min(n, limit); d > 1; --d) {
    if (n % d == 0) return d;
  }
  return 1;
}
int BalancedDivisor(int n) {
  return LargestDivisor(n, static_cast<int>(std::sqrt(static_cast<double>(n))));
}

Layout MakeLayout(LayoutKind kind, const Problem& problem, int64_t tokens, int ranks) {
  switch (kind) {
    case LayoutKind::kContiguous:
      return Layout::Contiguous(tokens, ranks);
    case LayoutKind::kZigzag:
      return Layout::Zigzag(tokens, ranks);
    case LayoutKind::kStriped:
      return Layout::Striped(tokens, ranks);
    case LayoutKind::kBalanced:
      return Layout::Balanced(problem.mask, tokens, ranks);
  }
  return {};
}

// Splits the shard of every sequence rank among the ranks of its head group, in order.
Layout SplitAmongHeads(const Layout& layout, const Mesh& mesh) {
  if (mesh.head_ranks == 1) return layout;
  std::vector<std::vector<Segment>> split(mesh.size());
  for (int s = 0; s < mesh.sequence_ranks(); ++s) {
    const int64_t rows = layout.rows(s);
    for (int h = 0; h < mesh.head_ranks; ++h) {
      const Range part{rows * h / mesh.head_ranks, rows * (h + 1) / mesh.head_ranks};
      split[mesh.rank_of(s, h)] = SegmentsOfRows(layout.segments(s), part);
    }
  }
  return Layout::FromSegments(layout.tokens(), std::move(split)).value();  // a split of a valid layout is valid
}

Status Refuse(std::string_view strategy, std::string_view why, std::string_view instead) {
  return absl::InvalidArgumentError(absl::StrFormat("strategy '%s' cannot serve this: %s; '%s' can",
                                                    std::string(strategy), std::string(why), std::string(instead)));
}

struct Shape {
  Mesh mesh;
  SequenceMethod method = SequenceMethod::kRing;
  LayoutKind layout = LayoutKind::kZigzag;
};

StatusOr<Shape> GridShape(std::string_view name, std::string_view extents, int ranks) {
  if (extents.empty()) {
    const int heads = BalancedDivisor(ranks);
    return Shape{{heads, ranks / heads, 1}};
  }
  const size_t cross = extents.find('x');
  const auto heads = ParseCount(extents.substr(0, cross));
  const auto sequence = cross == std::string_view::npos ? std::nullopt : ParseCount(extents.substr(cross + 1));
  if (!heads || !sequence) {
    return absl::InvalidArgumentError(
        absl::StrFormat("strategy '%s': '%s' must be HxS, head ranks by sequence ranks, such as grid:2x4",
                        std::string(name), std::string(extents)));
  }
  if (int64_t{*heads} * *sequence != ranks) {
    const int fit = BalancedDivisor(ranks);
    return Refuse(name,
                  absl::StrFormat("%d x %d needs %d ranks and there are %d", *heads, *sequence,
                                  int64_t{*heads} * *sequence, ranks),
                  absl::StrFormat("grid:%dx%d", fit, ranks / fit));
  }
  return Shape{{*heads, *sequence, 1}};
}

StatusOr<Shape> DoubleRingShape(std::string_view name, std::string_view nodes_text, const PlanOptions& options) {
  int nodes = 0;
  if (!nodes_text.empty()) {
    const auto parsed = ParseCount(nodes_text);
    if (!parsed) {
      return absl::InvalidArgumentError(
          absl::StrFormat("strategy '%s': '%s' must be a number of nodes, such as double-ring:2", std::string(name),
                          std::string(nodes_text)));
    }
    nodes = *parsed;
  } else if (options.ranks_per_node > 0) {
    if (options.ranks % options.ranks_per_node != 0) {
      return Refuse(name,
                    absl::StrFormat("%d ranks do not fill nodes of %d evenly", options.ranks, options.ranks_per_node),
                    "zigzag");
    }
    nodes = options.ranks / options.ranks_per_node;
  } else {
    nodes = BalancedDivisor(options.ranks);
  }
  if (options.ranks % nodes != 0) {
    return Refuse(name, absl::StrFormat("%d ranks do not divide into %d nodes", options.ranks, nodes), "zigzag");
  }
  return Shape{{1, options.ranks / nodes, nodes}};
}

StatusOr<Shape> ShapeOf(std::string_view name, const PlanOptions& options) {
  const int ranks = options.ranks;
  const Mesh line{1, ranks, 1};
  const size_t colon = name.find(':');
  const std::string_view family = name.substr(0, colon);
  const std::string_view argument = colon == std::string_view::npos ? "" : name.substr(colon + 1);
  if (family == "grid") return GridShape(name, argument, ranks);
  if (family == "double-ring") return DoubleRingShape(name, argument, options);
  if (argument.empty()) {
    if (name == "ring") return Shape{line, SequenceMethod::kRing, LayoutKind::kContiguous};
    if (name == "zigzag") return Shape{line, SequenceMethod::kRing, LayoutKind::kZigzag};
    if (name == "striped") return Shape{line, SequenceMethod::kRing, LayoutKind::kStriped};
    if (name == "balanced") return Shape{line, SequenceMethod::kRing, LayoutKind::kBalanced};
    if (name == "allgather") return Shape{line, SequenceMethod::kAllGather, LayoutKind::kZigzag};
    if (name == "ulysses") return Shape{{ranks, 1, 1}, SequenceMethod::kRing, LayoutKind::kContiguous};
    if (name == "tree") return Shape{line, SequenceMethod::kTree, LayoutKind::kContiguous};
  }
  return absl::InvalidArgumentError(absl::StrFormat(
      "strategy '%s' is unknown; it must be auto, ring, zigzag, striped, balanced, allgather, ulysses, grid[:HxS], "
      "double-ring[:NODES] or tree",
      std::string(name)));
}

PlanSpec MakeSpec(const Problem& problem, std::string_view name, const Shape& shape, Pass pass) {
  PlanSpec spec;
  spec.pass = pass;
  spec.problem = problem;
  spec.mesh = shape.mesh;
  spec.method = shape.method;
  spec.strategy = std::string(name);
  const int ranks = shape.mesh.sequence_ranks();
  const Layout queries = MakeLayout(shape.layout, problem, problem.query_tokens, ranks);
  // Self-attention keeps a token's query, key and value together. A layout balanced by query area says nothing about
  // keys of another length.
  const LayoutKind key_kind = shape.layout == LayoutKind::kBalanced ? LayoutKind::kContiguous : shape.layout;
  const Layout keys =
      problem.key_tokens == problem.query_tokens ? queries : MakeLayout(key_kind, problem, problem.key_tokens, ranks);
  spec.query_layout = SplitAmongHeads(queries, spec.mesh);
  spec.key_layout = SplitAmongHeads(keys, spec.mesh);
  return spec;
}

}  // namespace

std::vector<std::string> StrategyNames(int ranks) {
  std::vector<std::string> names = {"ring", "zigzag", "striped", "balanced", "allgather", "ulysses"};
  if (const int divisor = BalancedDivisor(ranks); divisor > 1) {
    names.push_back(absl::StrFormat("grid:%dx%d", divisor, ranks / divisor));
    names.push_back(absl::StrFormat("double-ring:%d", divisor));
  }
  names.push_back("tree");
  return names;
}

StatusOr<PlanSpec> MakePlanSpec(const Problem& problem, const PlanOptions& options) {
  TESSERA_RETURN_IF_ERROR(Validate(problem));
  if (options.ranks < 1 || options.ranks > kMaxRanks) {
    return absl::InvalidArgumentError(
        absl::StrFormat("ranks is %d; it must be from 1 to %d", options.ranks, kMaxRanks));
  }
  if (options.strategy != "auto") {
    TESSERA_ASSIGN_OR_RETURN(const Shape shape, ShapeOf(options.strategy, options));
    return MakeSpec(problem, options.strategy, shape, options.pass);
  }
  MachineModel machine;
  machine.ranks_per_node = options.ranks_per_node;
  PlanSpec best;
  double best_seconds = std::numeric_limits<double>::infinity();
  for (const std::string& name : StrategyNames(options.ranks)) {
    TESSERA_ASSIGN_OR_RETURN(const Shape shape, ShapeOf(name, options));
    PlanSpec spec = MakeSpec(problem, name, shape, options.pass);
    const double seconds = EstimateSeconds(spec, machine);
    if (seconds >= best_seconds) continue;
    best_seconds = seconds;
    best = std::move(spec);
  }
  return best;
}

}  // namespace tessera
