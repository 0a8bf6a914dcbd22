#include "partition/cost_shares.h"

#include <numeric>

namespace tessera {

double FlopsPerPair(const PlanSpec& spec) {
  const double qk = spec.problem.qk_width, v = spec.problem.v_width;
  // S and O; backward S, dQ, dK of the query's width and dP, dV of the value's.
  return spec.pass == Pass::kForward ? 2 * (qk + v) : 2 * (3 * qk + 2 * v);
}

double PairsOf(const BandIndex& mask, const StepBody& body) {
  const auto count = [&](const auto& attend) {
    double pairs = 0;
    for (const Tile& tile : attend.tiles) pairs += mask.Area(tile.queries, tile.keys);
    return pairs * attend.heads.size();
  };
  if (const auto* attend = std::get_if<AttendStep>(&body)) return count(*attend);
  if (const auto* attend = std::get_if<AttendBackwardStep>(&body)) return count(*attend);
  return 0;
}

Shares::Shares(const PlanSpec& spec)
    : spec_(spec),
      mask_(spec.problem.mask),
      element_bytes_(static_cast<int64_t>(SizeInBytes(spec.problem.dtype))),
      accumulator_bytes_(static_cast<int64_t>(SizeInBytes(AccumulatorType(spec.problem.dtype)))) {
  const Problem& problem = spec.problem;
  for (int64_t h = 0; h < spec.mesh.head_ranks; ++h) {
    const int64_t begin = h * problem.query_heads / spec.mesh.head_ranks;
    const int64_t end = (h + 1) * problem.query_heads / spec.mesh.head_ranks;
    query_heads_.push_back(end - begin);
    kv_heads_.push_back(end > begin ? (end - 1) / problem.group() - begin / problem.group() + 1 : 0);
  }
}

int64_t Shares::total_query_heads() const {
  return spec_.problem.query_heads;
}
int64_t Shares::total_kv_heads() const {
  return std::accumulate(kv_heads_.begin(), kv_heads_.end(), int64_t{0});
}

int64_t Shares::QueryRows(int s) const {
  int64_t rows = 0;
  for (int h = 0; h < spec_.mesh.head_ranks; ++h) rows += spec_.query_layout.rows(spec_.mesh.rank_of(s, h));
  return rows;
}

IntervalSet Shares::KeysNeededBy(int s) const {
  std::vector<Range> keys;
  for (int h = 0; h < spec_.mesh.head_ranks; ++h) {
    for (const Segment& queries : spec_.query_layout.segments(spec_.mesh.rank_of(s, h))) {
      mask_.AppendKeysOf(queries, &keys);
    }
  }
  return UnionOf(std::move(keys));
}

int64_t Shares::ForeignKeyRows(int s) const {
  const IntervalSet needed = KeysNeededBy(s);
  return needed.size() - RowsIn(spec_.key_layout, s, needed);
}

IntervalSet Shares::QueriesAsking(int s) const {
  std::vector<Range> queries;
  for (int h = 0; h < spec_.mesh.head_ranks; ++h) {
    for (const Segment& keys : spec_.key_layout.segments(spec_.mesh.rank_of(s, h))) {
      mask_.AppendQueriesOf(keys, &queries);
    }
  }
  return UnionOf(std::move(queries));
}

int64_t Shares::QueryRowsIn(int s, const IntervalSet& queries) const {
  return RowsIn(spec_.query_layout, s, queries);
}

double Shares::AttendedPairs(int s) const {
  double pairs = 0;
  const Segment all_keys{0, spec_.problem.key_tokens, 1};
  for (int h = 0; h < spec_.mesh.head_ranks; ++h) {
    for (const Segment& queries : spec_.query_layout.segments(spec_.mesh.rank_of(s, h))) {
      pairs += mask_.Area(queries, all_keys);
    }
  }
  return pairs;
}

int64_t Shares::RowsIn(const Layout& layout, int s, const IntervalSet& tokens) const {
  int64_t rows = 0;
  for (int h = 0; h < spec_.mesh.head_ranks; ++h) rows += layout.RowsOf(spec_.mesh.rank_of(s, h), tokens).size();
  return rows;
}

}  // namespace tessera
