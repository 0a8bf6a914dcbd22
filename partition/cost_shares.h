// What each rank has and needs, from masks and layouts alone. The closed forms are sums over these. Private to
// partition.
#pragma once

#include <cstdint>
#include <vector>

#include "partition/cost_band_index.h"
#include "partition/plan.h"

namespace tessera {

// Floating point operations of one attended (query, key, head) triple: two per multiply-add of each matrix product.
double FlopsPerPair(const PlanSpec& spec);
// Attended triples of a step, without those its tiles mask out; 0 for steps that attend nothing.
double PairsOf(const BandIndex& mask, const StepBody& body);

class Shares {
 public:
  explicit Shares(const PlanSpec& spec);

  const BandIndex& mask() const { return mask_; }
  int64_t query_heads(int head_rank) const { return query_heads_[head_rank]; }
  int64_t kv_heads(int head_rank) const { return kv_heads_[head_rank]; }
  int64_t total_query_heads() const;  // over head ranks
  int64_t total_kv_heads() const;     // over head ranks; more than the problem's when a group is split

  // Bytes of one row-head. Query side: what attending needs of it (backward also output gradient, log-sum-exp, delta),
  // its result (the query gradient) and a partial of that.
  int64_t query_bytes() const {
    const int64_t query = spec_.problem.qk_width * element_bytes_;
    return backward() ? query + spec_.problem.v_width * element_bytes_ + 2 * accumulator_bytes_ : query;
  }
  int64_t result_bytes() const {
    return backward() ? spec_.problem.qk_width * element_bytes_
                      : spec_.problem.v_width * element_bytes_ + accumulator_bytes_;
  }
  int64_t partial_bytes() const {
    return (backward() ? spec_.problem.qk_width : spec_.problem.v_width + 1) * accumulator_bytes_;
  }
  // Key side: key and value on the way to who attends them, and the partial gradients that come back.
  int64_t kv_bytes() const { return (spec_.problem.qk_width + spec_.problem.v_width) * element_bytes_; }
  int64_t kv_gradient_bytes() const {
    return backward() ? (spec_.problem.qk_width + spec_.problem.v_width) * accumulator_bytes_ : 0;
  }

  // Of sequence rank s: its query rows, the keys they attend, and how many of those other sequence ranks own.
  int64_t QueryRows(int s) const;
  IntervalSet KeysNeededBy(int s) const;
  int64_t ForeignKeyRows(int s) const;
  // Every query that attends a key of sequence rank s.
  IntervalSet QueriesAsking(int s) const;
  // Query rows of sequence rank s whose tokens are in `queries`.
  int64_t QueryRowsIn(int s, const IntervalSet& queries) const;
  double AttendedPairs(int s) const;  // per head

 private:
  bool backward() const { return spec_.pass == Pass::kBackward; }
  int64_t RowsIn(const Layout& layout, int s, const IntervalSet& tokens) const;

  const PlanSpec& spec_;
  BandIndex mask_;
  int64_t element_bytes_;
  int64_t accumulator_bytes_;  // of partials, log-sum-exp, delta and gradients on their way
  std::vector<int64_t> query_heads_;
  std::vector<int64_t> kv_heads_;
};

}  // namespace tessera
