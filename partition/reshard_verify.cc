#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "partition/reshard.h"

namespace tessera {
namespace {

Status Reject(const std::string& text) {
  return absl::FailedPreconditionError(absl::StrCat("reshard plan: ", text));
}

// Rows of `from` index i among the tokens that `to` index j holds.
int64_t CommonTokens(const ReshardSpec& spec, int sequence, int i, int j) {
  const int64_t tokens = spec.tokens[sequence];
  const CacheSharding& to = spec.to.sharding;
  if (!spec.from.layouts.empty()) {
    int64_t count = 0;
    for (const Segment& segment : spec.from.layouts[sequence].segments(i)) {
      if (to.axis != CacheAxis::kSequence) {
        count += segment.count;
      } else if (segment.stride == 1) {
        count += to.LocalRows(j, segment.begin + segment.count) - to.LocalRows(j, segment.begin);
      } else {
        for (int64_t n = 0; n < segment.count; ++n) count += to.Holds(j, segment.token(n));
      }
    }
    return count;
  }
  const CacheSharding& from = spec.from.sharding;
  if (from.axis != CacheAxis::kSequence) return to.LocalRows(j, tokens);
  if (to.axis != CacheAxis::kSequence) return from.LocalRows(i, tokens);
  int64_t count = 0;
  const int64_t block = to.block_tokens;
  for (int64_t begin = j * block; begin < tokens; begin += to.ranks * block) {
    count += from.LocalRows(i, std::min(begin + block, tokens)) - from.LocalRows(i, begin);
  }
  return count;
}

// The tokens that arrive in one column (or a run of columns that are always together) must be the wanted ones, once.
Status CheckColumn(int64_t column, int to, int sequence, std::vector<Range> arriving, const IntervalSet& wanted) {
  std::sort(arriving.begin(), arriving.end(), [](Range a, Range b) { return a.begin < b.begin; });
  IntervalSet all;
  int64_t end = 0;
  for (const Range& range : arriving) {
    if (range.begin < end) {
      return Reject(
          absl::StrFormat("rank %d gets token %d of sequence %d, column %d twice", to, range.begin, sequence, column));
    }
    end = range.end;
    all.Add(range);
  }
  if (const IntervalSet lacking = wanted.Difference(all); !lacking.empty()) {
    return Reject(absl::StrFormat("rank %d never gets token %d of sequence %d, column %d", to,
                                  lacking.ranges().front().begin, sequence, column));
  }
  if (const IntervalSet extra = all.Difference(wanted); !extra.empty()) {
    return Reject(absl::StrFormat("rank %d gets token %d of sequence %d, column %d and shall not hold it", to,
                                  extra.ranges().front().begin, sequence, column));
  }
  return absl::OkStatus();
}

Status CheckReceiver(const ReshardSpec& spec, int j, int sequence, const std::vector<const ReshardPart*>& parts) {
  const int to = spec.to.ranks[j];
  const IntervalSet columns = HeldColumns(spec.to, spec.shape, j);
  const IntervalSet tokens = HeldTokens(spec.to, sequence, spec.tokens[sequence], j);
  std::set<int64_t> cuts = {0, spec.shape.elements()};
  const auto cut_at = [&](const IntervalSet& set) {
    for (const Range& range : set.ranges()) cuts.insert({range.begin, range.end});
  };
  cut_at(columns);
  for (const ReshardPart* part : parts) cut_at(part->columns);
  for (auto cut = cuts.begin(); std::next(cut) != cuts.end(); ++cut) {
    const Range atom{*cut, *std::next(cut)};
    std::vector<Range> arriving;
    for (const ReshardPart* part : parts) {
      const auto ranges = part->tokens.ranges();
      if (part->columns.Intersects(atom)) arriving.insert(arriving.end(), ranges.begin(), ranges.end());
    }
    TESSERA_RETURN_IF_ERROR(
        CheckColumn(*cut, to, sequence, std::move(arriving), columns.Intersects(atom) ? tokens : IntervalSet()));
  }
  return absl::OkStatus();
}

}  // namespace

int64_t MovedElements(const ReshardSpec& spec) {
  int64_t elements = 0;
  for (size_t j = 0; j < spec.to.ranks.size(); ++j) {
    const int to = static_cast<int>(j);
    const IntervalSet columns = HeldColumns(spec.to, spec.shape, to);
    const int i = spec.from.IndexOf(spec.to.ranks[j]);
    const int64_t kept = i == kNoIndex ? 0 : columns.Intersection(HeldColumns(spec.from, spec.shape, i)).size();
    for (size_t s = 0; s < spec.tokens.size(); ++s) {
      elements += spec.to.sharding.LocalRows(to, spec.tokens[s]) * columns.size();
      if (kept > 0) elements -= CommonTokens(spec, static_cast<int>(s), i, to) * kept;
    }
  }
  return elements;
}

Status Verify(const ReshardPlan& plan) {
  const ReshardSpec& spec = plan.spec;
  TESSERA_RETURN_IF_ERROR(Validate(spec));
  std::map<std::pair<int, int>, std::vector<const ReshardPart*>> arriving;  // by (index in `to`, sequence)
  int64_t moved = 0;
  std::pair<int, int> last{-1, -1};
  for (const ReshardMessage& message : plan.messages) {
    const std::pair<int, int> pair{message.from, message.to};
    if (pair <= last) {
      return Reject(absl::StrFormat("message %d -> %d is out of order or doubled", pair.first, pair.second));
    }
    last = pair;
    const int i = spec.from.IndexOf(message.from);
    const int j = spec.to.IndexOf(message.to);
    if (i == kNoIndex || j == kNoIndex) {
      return Reject(absl::StrFormat("message %d -> %d is not from a holder to a new holder", pair.first, pair.second));
    }
    const IntervalSet columns = HeldColumns(spec.from, spec.shape, i);
    for (const ReshardPart& part : message.parts) {
      if (part.sequence < 0 || part.sequence >= static_cast<int>(spec.tokens.size()) || part.elements() == 0) {
        return Reject(absl::StrFormat("message %d -> %d has an empty part or one of sequence %d", pair.first,
                                      pair.second, part.sequence));
      }
      const IntervalSet tokens = HeldTokens(spec.from, part.sequence, spec.tokens[part.sequence], i);
      if (!part.columns.Difference(columns).empty() || !part.tokens.Difference(tokens).empty()) {
        return Reject(absl::StrFormat("rank %d sends rank %d of sequence %d what it does not hold", pair.first,
                                      pair.second, part.sequence));
      }
      arriving[{j, part.sequence}].push_back(&part);
    }
    if (message.from != message.to) moved += message.elements();
  }
  for (size_t j = 0; j < spec.to.ranks.size(); ++j) {
    for (size_t s = 0; s < spec.tokens.size(); ++s) {
      const std::pair<int, int> key{static_cast<int>(j), static_cast<int>(s)};
      TESSERA_RETURN_IF_ERROR(CheckReceiver(spec, key.first, key.second, arriving[key]));
    }
  }
  if (moved != MovedElements(spec)) {
    return Reject(absl::StrFormat("%d elements move; %d would do", moved, MovedElements(spec)));
  }
  return absl::OkStatus();
}

}  // namespace tessera
