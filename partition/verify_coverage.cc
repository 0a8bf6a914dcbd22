// Stages 6 and 7 of Verify(): the results are made of every unmasked pair exactly once, and of no idle tile.
#include <algorithm>
#include <limits>
#include <set>
#include <tuple>

#include "partition/verify_holding.h"
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

// The mask seen from the tokens of an output: those of queries meet keys, those of keys meet queries.
struct Side {
  Side(const Problem& problem, bool on_keys)
      : keys(on_keys),
        bands(on_keys ? Transposed(problem.mask.bands())
                      : std::vector<Band>(problem.mask.bands().begin(), problem.mask.bands().end())),
        mask(bands),
        others(on_keys ? problem.query_tokens : problem.key_tokens) {}
  bool keys;
  std::vector<Band> bands;
  BandIndex mask;
  int64_t others;  // how many tokens there are to meet
};

// What must hold of some rows of an output in some query heads.
struct Claim {
  const PlanView& plan;
  const Side& side;
  SlotContent output;
  HeadRange heads;
  Segment tokens;

  Status Error(int64_t token, int64_t other, const std::string& how) const {
    const bool decode = plan.kind == PlanView::Kind::kDecode;
    return absl::InvalidArgumentError(absl::StrCat("coverage: ", decode ? "row " : "query token ",
                                                   side.keys ? other : token,
                                                   decode ? " and cache part " : " and key token ",
                                                   side.keys ? token : other, " of heads ", Text(heads), " ", how));
  }
  Status Doubled(int64_t token, int64_t other, StepRef first, StepRef second) const {
    return Error(token, other,
                 absl::StrCat("reach the ", std::string(Name(output)), " more than once: from ", Where(plan, first),
                              " and from ", Where(plan, second)));
  }
  Status Lost(int64_t token, int64_t other) const {
    return Error(token, other, absl::StrCat("never reach the ", std::string(Name(output))));
  }
};

// Counts pairs one by one, from the definition of the mask alone.
Status CheckByCounting(const Claim& claim, const std::vector<Contribution>& parts) {
  std::vector<const Contribution*> seen(claim.side.others);
  std::vector<Band> bands;  // that hold the token
  const auto allows = [&](int64_t token, int64_t other) {
    return std::any_of(bands.begin(), bands.end(), [&](const Band& band) { return band.Allows(token, other); });
  };
  for (int64_t i = 0; i < claim.tokens.count; ++i) {
    const int64_t token = claim.tokens.token(i);
    std::fill(seen.begin(), seen.end(), nullptr);
    bands.clear();
    for (const Band& band : claim.side.bands) {
      if (!band.KeysOf(token).empty()) bands.push_back(band);
    }
    for (const Contribution& part : parts) {
      for (int64_t j = 0; j < part.others.count; ++j) {
        const int64_t other = part.others.token(j);
        if (!allows(token, other)) continue;
        if (seen[other] != nullptr) return claim.Doubled(token, other, seen[other]->step, part.step);
        seen[other] = &part;
      }
    }
    for (int64_t other = 0; other < claim.side.others; ++other) {
      if (seen[other] == nullptr && allows(token, other)) return claim.Lost(token, other);
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
  explicit AreaChecker(const Claim& claim) : claim_(claim), mask_(claim.side.mask) {}

  Status Check(std::vector<Contribution> parts) {
    double covered = 0;
    std::erase_if(parts, [&](Contribution& part) {
      if (part.others.count == 1) part.others.stride = 1;  // one token lies on every progression: take the densest
      const double area = mask_.Area(claim_.tokens, part.others);
      covered += area;
      return area == 0;
    });
    const auto residue = [](const Segment& tokens) { return tokens.begin % tokens.stride; };
    std::sort(parts.begin(), parts.end(), [&](const Contribution& a, const Contribution& b) {
      return std::tuple(a.others.stride, residue(a.others), a.others.begin) <
             std::tuple(b.others.stride, residue(b.others), b.others.begin);
    });
    // Progressions of one stride and residue are intervals; those of other residues never meet.
    size_t furthest = 0;
    for (size_t i = 1; i < parts.size(); ++i) {
      const bool same = parts[i].others.stride == parts[furthest].others.stride &&
                        residue(parts[i].others) == residue(parts[furthest].others);
      if (same) TESSERA_RETURN_IF_ERROR(CheckDisjoint(parts[furthest], parts[i]));
      if (!same || parts[i].others.last() > parts[furthest].others.last()) furthest = i;
    }
    for (size_t i = 0; i < parts.size(); ++i) {
      const auto other =
          std::partition_point(parts.begin() + static_cast<std::ptrdiff_t>(i), parts.end(),
                               [&](const Contribution& part) { return part.others.stride == parts[i].others.stride; });
      for (auto part = other; part != parts.end(); ++part) TESSERA_RETURN_IF_ERROR(CheckDisjoint(parts[i], *part));
    }
    const double expected = mask_.Area(claim_.tokens, {0, claim_.side.others});
    return covered == expected ? absl::OkStatus() : Missing(parts);
  }

 private:
  Status CheckDisjoint(const Contribution& a, const Contribution& b) const {
    const Segment common = CommonTokens(a.others, b.others);
    if (common.empty() || mask_.Area(claim_.tokens, common) == 0) return absl::OkStatus();
    const auto [token, other] = AllowedPair(mask_, claim_.tokens, common);
    return claim_.Doubled(token, other, a.step, b.step);
  }
  Status Missing(const std::vector<Contribution>& parts) const {
    std::vector<bool> present(claim_.side.others, false);
    for (const Contribution& part : parts) {
      for (int64_t j = 0; j < part.others.count; ++j) present[part.others.token(j)] = true;
    }
    for (int64_t i = 0; i < claim_.tokens.count; ++i) {
      const int64_t token = claim_.tokens.token(i);
      for (int64_t other = 0; other < claim_.side.others; ++other) {
        if (!present[other] && mask_.Allows(token, other)) return claim_.Lost(token, other);
      }
    }
    return absl::InternalError("coverage: areas disagree although every pair is present");
  }

  const Claim& claim_;
  const BandIndex& mask_;
};

// Of key rows, every query head of the group must have contributed; contributions of some of its heads cut it.
std::vector<HeadRange> QueryHeadsToCheck(const Problem& problem, const FinishedRows& rows,
                                         const std::vector<Contribution>& parts) {
  if (!IsOnKeySide(rows.output)) return {rows.heads};
  const HeadRange all{rows.heads.begin * problem.group(), rows.heads.end * problem.group()};
  HeadCuts cuts;
  cuts.Add(all);
  for (const Contribution& part : parts) cuts.Add(part.heads);
  return cuts.Within(all);
}

// Where no tokens are sharded, each rank's output comes from its own copy, slice or heads of the cache.
Status CheckOwnCache(const FinishedRows& rows, const std::vector<Contribution>& parts, const PlanView& plan) {
  for (const Contribution& part : parts) {
    if (part.step.rank == rows.rank) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("coverage: the ", std::string(Name(rows.output)), " of rank ", rows.rank, " heads ",
                     Text(rows.heads), " is made of the cache of another rank, by ", Where(plan, part.step)));
  }
  return absl::OkStatus();
}

}  // namespace

Status CheckCoverage(const PlanView& plan, const Outcome& outcome) {
  const Problem& problem = plan.problem;
  const bool count = static_cast<double>(problem.query_heads) * static_cast<double>(problem.query_tokens) *
                         static_cast<double>(problem.key_tokens) <=
                     static_cast<double>(kBruteForcePairs);
  const Side sides[] = {Side(problem, false), Side(problem, true)};
  // Outputs that come in pairs are usually made of the same parts, which need one proof.
  std::set<std::tuple<bool, int, int, int64_t, int64_t, int64_t>> proved;
  for (const FinishedRows& rows : outcome.rows) {
    const Side& side = sides[IsOnKeySide(rows.output)];
    if (plan.kind == PlanView::Kind::kDecode && problem.key_tokens == 1) {
      TESSERA_RETURN_IF_ERROR(CheckOwnCache(rows, outcome.contributions.Flatten(rows.bag), plan));
    }
    if (!proved
             .insert({side.keys, rows.heads.begin, rows.bag, rows.tokens.begin, rows.tokens.count, rows.tokens.stride})
             .second) {
      continue;
    }
    if (outcome.contributions.size(rows.bag) > outcome.contributions.leaves()) {
      return absl::InvalidArgumentError(absl::StrCat("coverage: ", side.keys ? "key" : "query", " tokens ",
                                                     Text(rows.tokens), " of heads ", Text(rows.heads),
                                                     " are merged more than once"));
    }
    const std::vector<Contribution> parts = outcome.contributions.Flatten(rows.bag);
    for (const HeadRange heads : QueryHeadsToCheck(problem, rows, parts)) {
      const Claim claim{plan, side, rows.output, heads, rows.tokens};
      std::vector<Contribution> of_heads = parts;
      std::erase_if(of_heads, [&](const Contribution& part) {
        return heads.begin < part.heads.begin || heads.end > part.heads.end;
      });
      TESSERA_RETURN_IF_ERROR(count ? CheckByCounting(claim, of_heads) : AreaChecker(claim).Check(std::move(of_heads)));
    }
  }
  return absl::OkStatus();
}

namespace {

std::span<const Tile> TilesOf(const StepBody& body) {
  if (const auto* attend = std::get_if<AttendStep>(&body)) return attend->tiles;
  if (const auto* attend = std::get_if<AttendBackwardStep>(&body)) return attend->tiles;
  return {};
}

}  // namespace

Status CheckTilesUnmasked(const PlanView& plan, const BandIndex& mask) {
  for (const RankProgram& program : plan.programs) {
    for (StepId step = 0; step < static_cast<int>(program.steps.size()); ++step) {
      for (const Tile& tile : TilesOf(program.steps[step].body)) {
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
