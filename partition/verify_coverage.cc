// Stages 6 and 7 of Verify(): the results are made of every unmasked pair exactly once, and of no idle tile.
#include <algorithm>
#include <limits>
#include <tuple>

#include "partition/verify_internal.h"

namespace tessera::verify {

Contributions::Contributions() : nodes_(1) {}

int Contributions::Add(const Contribution& contribution) {
  leaves_.push_back(contribution);
  nodes_.push_back({kLeaf, static_cast<int>(leaves_.size()) - 1, 1});
  return static_cast<int>(nodes_.size()) - 1;
}

int Contributions::Union(int a, int b) {
  if (a == kEmpty || b == kEmpty) return std::max(a, b);
  const uint64_t key = (static_cast<uint64_t>(a) << 32) | static_cast<uint32_t>(b);
  const auto [it, fresh] = unions_.try_emplace(key, static_cast<int>(nodes_.size()));
  if (fresh) {
    // Repeated doubling must not overflow; nothing right comes near the cap.
    constexpr int64_t kCap = std::numeric_limits<int64_t>::max() / 4;
    nodes_.push_back({a, b, std::min(kCap, nodes_[a].size + nodes_[b].size)});
  }
  return it->second;
}

std::vector<Contribution> Contributions::Flatten(int bag) const {
  std::vector<Contribution> list;
  std::vector<int> stack;
  if (bag != kEmpty) stack.push_back(bag);
  while (!stack.empty()) {
    const Node& node = nodes_[stack.back()];
    stack.pop_back();
    if (node.left == kLeaf) {
      list.push_back(leaves_[node.right]);
    } else {
      stack.insert(stack.end(), {node.right, node.left});
    }
  }
  return list;
}

namespace {

constexpr int64_t kBruteForcePairs = int64_t{1} << 20;

Status Error(int64_t query, int64_t key, HeadRange heads, const std::string& what) {
  return absl::InvalidArgumentError(
      absl::StrCat("coverage: query token ", query, " and key token ", key, " of heads ", Text(heads), " ", what));
}
Status Doubled(const Plan& plan, int64_t query, int64_t key, HeadRange heads, StepRef first, StepRef second) {
  return Error(
      query, key, heads,
      absl::StrCat("reach the result more than once: from ", Where(plan, first), " and from ", Where(plan, second)));
}
Status Lost(int64_t query, int64_t key, HeadRange heads) {
  return Error(query, key, heads, "never reach the result");
}

// Counts pairs one by one, from the definition of the mask alone.
Status CheckByCounting(const Plan& plan, const FinishedRows& rows, const std::vector<Contribution>& parts) {
  std::vector<const Contribution*> seen(plan.spec.problem.key_tokens);
  std::vector<Band> bands;  // that hold the query
  const auto allows = [&](int64_t query, int64_t key) {
    return std::any_of(bands.begin(), bands.end(), [&](const Band& band) { return band.Allows(query, key); });
  };
  for (int64_t i = 0; i < rows.queries.count; ++i) {
    const int64_t query = rows.queries.token(i);
    std::fill(seen.begin(), seen.end(), nullptr);
    bands.clear();
    for (const Band& band : plan.spec.problem.mask.bands()) {
      if (!band.KeysOf(query).empty()) bands.push_back(band);
    }
    for (const Contribution& part : parts) {
      for (int64_t j = 0; j < part.keys.count; ++j) {
        const int64_t key = part.keys.token(j);
        if (!allows(query, key)) continue;
        if (seen[key] != nullptr) return Doubled(plan, query, key, rows.heads, seen[key]->step, part.step);
        seen[key] = &part;
      }
    }
    for (int64_t key = 0; key < plan.spec.problem.key_tokens; ++key) {
      if (seen[key] == nullptr && allows(query, key)) return Lost(query, key, rows.heads);
    }
  }
  return absl::OkStatus();
}

// Finds a pair of the two segments that the mask allows; there must be one.
std::pair<int64_t, int64_t> AllowedPair(const BandIndex& mask, const Segment& queries, const Segment& keys) {
  int64_t i = 0, j = 0;
  while (mask.Area({queries.token(i), 1}, keys) == 0) ++i;
  while (!mask.Allows(queries.token(i), keys.token(j))) ++j;
  return {queries.token(i), keys.token(j)};
}

// Exact for any size: parts are pairwise disjoint where the mask is open, and their areas add up to the mask's.
class AreaChecker {
 public:
  AreaChecker(const Plan& plan, const BandIndex& mask, const FinishedRows& rows)
      : plan_(plan), mask_(mask), rows_(rows) {}

  Status Check(std::vector<Contribution> parts) {
    double covered = 0;
    std::erase_if(parts, [&](Contribution& part) {
      if (part.keys.count == 1) part.keys.stride = 1;  // one key lies on every progression: take the densest
      const double area = mask_.Area(rows_.queries, part.keys);
      covered += area;
      return area == 0;
    });
    const auto residue = [](const Segment& keys) { return keys.begin % keys.stride; };
    std::sort(parts.begin(), parts.end(), [&](const Contribution& a, const Contribution& b) {
      return std::tuple(a.keys.stride, residue(a.keys), a.keys.begin) <
             std::tuple(b.keys.stride, residue(b.keys), b.keys.begin);
    });
    // Progressions of one stride and residue are intervals; those of other residues never meet.
    size_t furthest = 0;
    for (size_t i = 1; i < parts.size(); ++i) {
      const bool same = parts[i].keys.stride == parts[furthest].keys.stride &&
                        residue(parts[i].keys) == residue(parts[furthest].keys);
      if (same) TESSERA_RETURN_IF_ERROR(CheckDisjoint(parts[furthest], parts[i]));
      if (!same || parts[i].keys.last() > parts[furthest].keys.last()) furthest = i;
    }
    for (size_t i = 0; i < parts.size(); ++i) {
      const auto other =
          std::partition_point(parts.begin() + static_cast<std::ptrdiff_t>(i), parts.end(),
                               [&](const Contribution& part) { return part.keys.stride == parts[i].keys.stride; });
      for (auto part = other; part != parts.end(); ++part) TESSERA_RETURN_IF_ERROR(CheckDisjoint(parts[i], *part));
    }
    const double expected = mask_.Area(rows_.queries, {0, plan_.spec.problem.key_tokens});
    return covered == expected ? absl::OkStatus() : Missing(parts);
  }

 private:
  Status CheckDisjoint(const Contribution& a, const Contribution& b) const {
    const Segment common = CommonTokens(a.keys, b.keys);
    if (common.empty() || mask_.Area(rows_.queries, common) == 0) return absl::OkStatus();
    const auto [query, key] = AllowedPair(mask_, rows_.queries, common);
    return Doubled(plan_, query, key, rows_.heads, a.step, b.step);
  }
  Status Missing(const std::vector<Contribution>& parts) const {
    std::vector<bool> present(plan_.spec.problem.key_tokens, false);
    for (const Contribution& part : parts) {
      for (int64_t j = 0; j < part.keys.count; ++j) present[part.keys.token(j)] = true;
    }
    for (int64_t i = 0; i < rows_.queries.count; ++i) {
      for (int64_t key = 0; key < plan_.spec.problem.key_tokens; ++key) {
        if (!present[key] && mask_.Allows(rows_.queries.token(i), key)) {
          return Lost(rows_.queries.token(i), key, rows_.heads);
        }
      }
    }
    return absl::InternalError("coverage: areas disagree although every pair is present");
  }

  const Plan& plan_;
  const BandIndex& mask_;
  const FinishedRows& rows_;
};

}  // namespace

Status CheckCoverage(const Plan& plan, const BandIndex& mask, const Outcome& outcome) {
  const Problem& problem = plan.spec.problem;
  const bool count = static_cast<double>(problem.query_heads) * static_cast<double>(problem.query_tokens) *
                         static_cast<double>(problem.key_tokens) <=
                     static_cast<double>(kBruteForcePairs);
  for (const FinishedRows& rows : outcome.rows) {
    if (outcome.contributions.size(rows.bag) > outcome.contributions.leaves()) {
      return absl::InvalidArgumentError(absl::StrCat("coverage: query tokens ", Text(rows.queries), " of heads ",
                                                     Text(rows.heads), " are merged more than once"));
    }
    std::vector<Contribution> parts = outcome.contributions.Flatten(rows.bag);
    TESSERA_RETURN_IF_ERROR(count ? CheckByCounting(plan, rows, parts)
                                  : AreaChecker(plan, mask, rows).Check(std::move(parts)));
  }
  return absl::OkStatus();
}

Status CheckTilesUnmasked(const Plan& plan, const BandIndex& mask) {
  for (const RankProgram& program : plan.programs) {
    for (StepId step = 0; step < static_cast<int>(program.steps.size()); ++step) {
      const auto* attend = std::get_if<AttendStep>(&program.steps[step].body);
      if (attend == nullptr) continue;
      for (const Tile& tile : attend->tiles) {
        if (mask.Area(tile.queries, tile.keys) > 0) continue;
        return absl::InvalidArgumentError(absl::StrCat("masked-out work: ", Where(program, step),
                                                       " attends query tokens ", Text(tile.queries), " to key tokens ",
                                                       Text(tile.keys), ", which the mask forbids entirely"));
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace tessera::verify
