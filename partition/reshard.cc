#include "partition/reshard.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "xxhash.h"

namespace tessera {
namespace {

// Ranks of the source that hold the same columns of all tokens.
struct HolderClass {
  std::vector<int> holders;  // indices
  IntervalSet columns;
};

// Every element of a row belongs to the class of exactly the ranks that hold it; classes with fewer holders first,
// because they have less choice.
std::vector<HolderClass> ClassesOf(const CacheEnd& end, const CacheRowShape& shape) {
  std::vector<IntervalSet> held;
  std::set<int64_t> cuts = {0, shape.elements()};
  for (size_t i = 0; i < end.ranks.size(); ++i) {
    held.push_back(HeldColumns(end, shape, static_cast<int>(i)));
    for (const Range& range : held.back().ranges()) cuts.insert({range.begin, range.end});
  }
  std::map<std::vector<int>, IntervalSet> columns;
  for (auto cut = cuts.begin(); std::next(cut) != cuts.end(); ++cut) {
    const Range atom{*cut, *std::next(cut)};
    std::vector<int> holders;
    for (size_t i = 0; i < held.size(); ++i) {
      if (held[i].Intersects(atom)) holders.push_back(static_cast<int>(i));
    }
    columns[std::move(holders)].Add(atom);
  }
  std::vector<HolderClass> classes;
  for (auto& [holders, set] : columns) classes.push_back({holders, std::move(set)});
  std::stable_sort(classes.begin(), classes.end(),
                   [](const auto& a, const auto& b) { return a.holders.size() < b.holders.size(); });
  return classes;
}

// How much each holder sends so that loads end as level as `demand` can make them.
std::vector<double> Quotas(const std::vector<int>& holders, const std::vector<double>& load, double demand) {
  std::vector<double> sorted;
  for (int h : holders) sorted.push_back(load[h]);
  std::sort(sorted.begin(), sorted.end());
  double level = 0, below = 0;
  for (size_t n = 1; n <= sorted.size(); ++n) {
    below += sorted[n - 1];
    level = (demand + below) / static_cast<double>(n);
    if (n == sorted.size() || level <= sorted[n]) break;
  }
  std::vector<double> quotas;
  for (int h : holders) quotas.push_back(std::max(0.0, level - load[h]));
  return quotas;
}

class Planner {
 public:
  explicit Planner(const ReshardSpec& spec) : spec_(spec), load_(spec.from.ranks.size()) {
    const bool by_tokens = !spec.from.layouts.empty() || spec.from.sharding.axis == CacheAxis::kSequence;
    if (by_tokens) {
      PlanByTokens();
    } else {
      PlanByColumns();
    }
  }

  std::vector<ReshardMessage> Messages() && {
    std::vector<ReshardMessage> messages;
    for (auto& [pair, parts] : parts_) messages.push_back({pair.first, pair.second, std::move(parts)});
    return messages;
  }

 private:
  // Every token has one holder: no choice.
  void PlanByTokens() {
    const int sequences = static_cast<int>(spec_.tokens.size());
    for (int s = 0; s < sequences; ++s) {
      std::vector<IntervalSet> held;
      for (size_t i = 0; i < spec_.from.ranks.size(); ++i) {
        held.push_back(HeldTokens(spec_.from, s, spec_.tokens[s], static_cast<int>(i)));
      }
      for (size_t j = 0; j < spec_.to.ranks.size(); ++j) {
        const IntervalSet columns = HeldColumns(spec_.to, spec_.shape, static_cast<int>(j));
        const IntervalSet wanted = HeldTokens(spec_.to, s, spec_.tokens[s], static_cast<int>(j));
        for (size_t i = 0; i < held.size(); ++i) {
          Add(spec_.from.ranks[i], spec_.to.ranks[j], {s, wanted.Intersection(held[i]), columns});
        }
      }
    }
  }

  struct Demand {
    int to = 0;  // world rank
    ReshardPart part;
  };

  // Columns have holders that all have all tokens: the tokens of a demand may be cut anywhere.
  void PlanByColumns() {
    const std::vector<HolderClass> classes = ClassesOf(spec_.from, spec_.shape);
    std::vector<std::vector<Demand>> demands(classes.size());
    for (size_t j = 0; j < spec_.to.ranks.size(); ++j) {
      const int to = spec_.to.ranks[j];
      IntervalSet missing = HeldColumns(spec_.to, spec_.shape, static_cast<int>(j));
      IntervalSet own;
      if (const int i = spec_.from.IndexOf(to); i != kNoIndex) {
        own = missing.Intersection(HeldColumns(spec_.from, spec_.shape, i));
        missing = missing.Difference(own);
      }
      for (size_t s = 0; s < spec_.tokens.size(); ++s) {
        const int sequence = static_cast<int>(s);
        const IntervalSet tokens = HeldTokens(spec_.to, sequence, spec_.tokens[s], static_cast<int>(j));
        Add(to, to, {sequence, tokens, own});
        for (size_t c = 0; c < classes.size(); ++c) {
          ReshardPart part{sequence, tokens, missing.Intersection(classes[c].columns)};
          if (part.elements() > 0) demands[c].push_back({to, std::move(part)});
        }
      }
    }
    for (size_t c = 0; c < classes.size(); ++c) Serve(classes[c].holders, demands[c]);
  }

  // Lays the demands on a line and cuts it by the holders' quotas, so that there are at most holders + receivers - 1
  // messages; holders that already send to a receiver come first.
  void Serve(const std::vector<int>& holders, const std::vector<Demand>& demands) {
    double total = 0;
    for (const Demand& demand : demands) total += static_cast<double>(demand.part.elements());
    std::vector<double> left = Quotas(holders, load_, total);
    double carry = 0;  // what cuts at whole tokens leave of a quota passes to the next holder, not to another message
    for (const Demand& demand : demands) {
      const auto width = static_cast<double>(demand.part.columns.size());
      IntervalSet tokens = demand.part.tokens;
      while (!tokens.empty()) {
        const size_t h = Choose(holders, left, demand.to, width);
        left[h] += std::exchange(carry, 0.0);
        const int64_t count = std::max<int64_t>(1, static_cast<int64_t>(left[h] / width + 0.5));
        IntervalSet taken = FirstTokens(tokens, count);
        tokens = tokens.Difference(taken);
        left[h] -= static_cast<double>(taken.size()) * width;
        load_[holders[h]] += static_cast<double>(taken.size()) * width;
        if (taken.size() == count) carry = std::exchange(left[h], 0.0);
        Add(spec_.from.ranks[holders[h]], demand.to, {demand.part.sequence, std::move(taken), demand.part.columns});
      }
    }
  }

  size_t Choose(const std::vector<int>& holders, const std::vector<double>& left, int to, double width) const {
    size_t first = holders.size();
    for (size_t h = 0; h < holders.size(); ++h) {
      if (left[h] < width / 2) continue;
      if (parts_.count({spec_.from.ranks[holders[h]], to}) > 0) return h;
      if (first == holders.size()) first = h;
    }
    if (first < holders.size()) return first;
    return std::max_element(left.begin(), left.end()) - left.begin();  // all used up but for rounding
  }

  static IntervalSet FirstTokens(const IntervalSet& tokens, int64_t count) {
    IntervalSet first;
    for (const Range& range : tokens.ranges()) {
      if (count <= 0) break;
      first.Add({range.begin, std::min(range.end, range.begin + count)});
      count -= range.size();
    }
    return first;
  }

  void Add(int from, int to, ReshardPart part) {
    if (part.elements() == 0) return;
    std::vector<ReshardPart>& parts = parts_[{from, to}];
    for (ReshardPart& known : parts) {
      if (known.sequence != part.sequence) continue;
      if (known.columns == part.columns) {
        known.tokens = known.tokens.Union(part.tokens);
        return;
      }
      if (known.tokens == part.tokens) {
        known.columns = known.columns.Union(part.columns);
        return;
      }
    }
    parts.push_back(std::move(part));
  }

  const ReshardSpec& spec_;
  std::vector<double> load_;  // elements sent, per index
  std::map<std::pair<int, int>, std::vector<ReshardPart>> parts_;
};

void PrintRanges(const IntervalSet& set, std::string& text) {
  constexpr size_t kMost = 3;
  const auto ranges = set.ranges();
  for (size_t i = 0; i < std::min(kMost, ranges.size()); ++i) {
    absl::StrAppendFormat(&text, "%s[%d, %d)", i == 0 ? "" : " ", ranges[i].begin, ranges[i].end);
  }
  if (ranges.size() > kMost) absl::StrAppend(&text, " and ", ranges.size() - kMost, " more");
}

}  // namespace

int CacheEnd::IndexOf(int world_rank) const {
  const auto it = std::find(ranks.begin(), ranks.end(), world_rank);
  return it == ranks.end() ? kNoIndex : static_cast<int>(it - ranks.begin());
}

IntervalSet HeldColumns(const CacheEnd& end, const CacheRowShape& shape, int index) {
  if (!end.layouts.empty()) return IntervalSet({0, shape.elements()});
  IntervalSet columns;
  if (shape.latent) {
    if (end.sharding.KvHeads(index, 1).empty()) return columns;
    columns.Add(end.sharding.LatentColumns(index, shape.value_width));
    columns.Add({shape.value_width, shape.key_width});
    return columns;
  }
  const HeadRange heads = end.sharding.KvHeads(index, shape.kv_heads);
  const int64_t keys = int64_t{shape.kv_heads} * shape.key_width;
  columns.Add({int64_t{heads.begin} * shape.key_width, int64_t{heads.end} * shape.key_width});
  columns.Add({keys + int64_t{heads.begin} * shape.value_width, keys + int64_t{heads.end} * shape.value_width});
  return columns;
}

IntervalSet HeldTokens(const CacheEnd& end, int sequence, int64_t tokens, int index) {
  IntervalSet held;
  if (!end.layouts.empty()) {
    for (const Segment& segment : end.layouts[sequence].segments(index)) {
      IntervalSet own;
      if (segment.stride == 1) {
        own.Add({segment.begin, segment.begin + segment.count});
      } else {
        for (int64_t i = 0; i < segment.count; ++i) own.Add({segment.token(i), segment.token(i) + 1});
      }
      held = held.Union(own);
    }
    return held;
  }
  const CacheSharding& sharding = end.sharding;
  if (sharding.axis != CacheAxis::kSequence) return IntervalSet({0, tokens});
  const int64_t block = sharding.block_tokens;
  for (int64_t begin = index * block; begin < tokens; begin += sharding.ranks * block) {
    held.Add({begin, std::min(begin + block, tokens)});
  }
  return held;
}

Status Validate(const ReshardSpec& spec) {
  constexpr int64_t kMostTokens = int64_t{1} << 32;
  if (!spec.to.layouts.empty()) {
    return absl::InvalidArgumentError("reshard: the new holders have layouts; only the source may");
  }
  for (int64_t tokens : spec.tokens) {
    if (tokens < 0 || tokens > kMostTokens) {
      return absl::InvalidArgumentError(
          absl::StrFormat("reshard: a sequence has %d tokens; it must be from 0 to 2^32", tokens));
    }
  }
  for (const auto& [name, end] : {std::pair("source", &spec.from), {"destination", &spec.to}}) {
    if (end->layouts.empty()) {
      if (const Status status = Validate(end->sharding, spec.shape); !status.ok()) {
        return absl::InvalidArgumentError(absl::StrCat("reshard, ", name, ": ", std::string(status.message())));
      }
    } else if (end->layouts.size() != spec.tokens.size()) {
      return absl::InvalidArgumentError(absl::StrFormat("reshard, %s: %d layouts for %d sequences; each needs one",
                                                        name, end->layouts.size(), spec.tokens.size()));
    }
    TESSERA_RETURN_IF_ERROR(Validate(spec.shape));
    const size_t ranks = end->layouts.empty() ? end->sharding.ranks : end->ranks.size();
    if (end->ranks.empty() || end->ranks.size() != ranks) {
      return absl::InvalidArgumentError(absl::StrFormat("reshard, %s: %d world ranks are named; the sharding has %d",
                                                        name, end->ranks.size(), std::max<size_t>(ranks, 1)));
    }
    std::set<int> seen;
    for (int rank : end->ranks) {
      if (rank < 0 || !seen.insert(rank).second) {
        return absl::InvalidArgumentError(
            absl::StrFormat("reshard, %s: rank %d is named; ranks must be at least 0 and named once", name, rank));
      }
    }
    for (size_t s = 0; s < end->layouts.size(); ++s) {
      const Layout& layout = end->layouts[s];
      if (layout.tokens() != spec.tokens[s] || layout.ranks() != static_cast<int>(ranks)) {
        return absl::InvalidArgumentError(absl::StrFormat(
            "reshard, %s: the layout of sequence %d is of %d tokens on %d ranks; it must be of %d on %d", name, s,
            layout.tokens(), layout.ranks(), spec.tokens[s], ranks));
      }
    }
  }
  return absl::OkStatus();
}

uint64_t Hash(const ReshardSpec& spec) {
  // Raise the version when the planner cuts otherwise: ranks of different releases then disagree at start-up.
  constexpr int64_t kPlannerVersion = 1;
  std::vector<int64_t> words = {kPlannerVersion,      spec.shape.latent,      spec.shape.kv_heads,
                                spec.shape.key_width, spec.shape.value_width, static_cast<int64_t>(spec.shape.dtype)};
  const auto add_list = [&](const auto& list) {
    words.push_back(static_cast<int64_t>(list.size()));
    words.insert(words.end(), list.begin(), list.end());
  };
  add_list(spec.tokens);
  for (const CacheEnd* end : {&spec.from, &spec.to}) {
    add_list(end->ranks);
    const CacheSharding& sharding = end->sharding;
    for (int64_t word : {static_cast<int64_t>(sharding.axis), int64_t{sharding.ranks}, int64_t{sharding.groups},
                         int64_t{sharding.block_tokens}, int64_t{sharding.query_heads}}) {
      words.push_back(word);
    }
    words.push_back(static_cast<int64_t>(end->layouts.size()));
    for (const Layout& layout : end->layouts) {
      words.push_back(layout.ranks());
      for (int r = 0; r < layout.ranks(); ++r) {
        words.push_back(static_cast<int64_t>(layout.segments(r).size()));
        for (const Segment& segment : layout.segments(r)) {
          words.insert(words.end(), {segment.begin, segment.count, segment.stride});
        }
      }
    }
  }
  return XXH3_64bits(words.data(), words.size() * sizeof words[0]);
}

int64_t ReshardMessage::elements() const {
  int64_t elements = 0;
  for (const ReshardPart& part : parts) elements += part.elements();
  return elements;
}

std::string ReshardPlan::ToString() const {
  std::string text;
  for (const ReshardMessage& message : messages) {
    absl::StrAppendFormat(&text, "%d -> %d: %d elements a layer", message.from, message.to, message.elements());
    for (const ReshardPart& part : message.parts) {
      absl::StrAppendFormat(&text, "; sequence %d tokens ", part.sequence);
      PrintRanges(part.tokens, text);
      absl::StrAppend(&text, " columns ");
      PrintRanges(part.columns, text);
    }
    absl::StrAppend(&text, "\n");
  }
  return text;
}

StatusOr<ReshardPlan> MakeReshardPlan(const ReshardSpec& spec) {
  TESSERA_RETURN_IF_ERROR(Validate(spec));
  return ReshardPlan{spec, Planner(spec).Messages()};
}

}  // namespace tessera
