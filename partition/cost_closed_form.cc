// PredictedBytes: sums over masks and layouts, sharing no code with the planners.
#include <algorithm>

#include "partition/cost.h"
#include "partition/cost_shares.h"

namespace tessera {
namespace {

// Head exchange: every rank of a head group gathers its heads of the other members' rows, and returns their results, in
// the backward pass also its share of the gradients of keys and values.
int64_t HeadExchangeBytes(const PlanSpec& spec, const Shares& shares) {
  const Mesh& mesh = spec.mesh;
  if (mesh.head_ranks == 1) return 0;
  std::vector<Range> attended;
  shares.mask().AppendKeysOf({0, spec.problem.query_tokens, 1}, &attended);  // of any rank's queries
  const IntervalSet keys = UnionOf(std::move(attended));
  int64_t bytes = 0;
  for (int rank = 0; rank < mesh.size(); ++rank) {
    for (int h = 0; h < mesh.head_ranks; ++h) {
      if (h == mesh.head_of(rank)) continue;
      bytes += spec.query_layout.rows(rank) * shares.query_heads(h) * (shares.query_bytes() + shares.result_bytes()) +
               spec.key_layout.RowsOf(rank, keys).size() * shares.kv_heads(h) *
                   (shares.kv_bytes() + shares.kv_gradient_bytes());
    }
  }
  return bytes;
}

// Ring and all-gather: every attended key/value row once per sequence rank that does not own it, and backward as many
// rows of gradients.
int64_t KeyValueBytes(const PlanSpec& spec, const Shares& shares) {
  int64_t rows = 0;
  for (int s = 0; s < spec.mesh.sequence_ranks(); ++s) rows += shares.ForeignKeyRows(s);
  return rows * shares.total_kv_heads() * (shares.kv_bytes() + shares.kv_gradient_bytes());
}

// Tree: on the edge above a member, the root's query rows that the member's subtree attends go down and come back as
// partials. Members are numbered from the root along the ring; a member's subtree is [x, x + lowest bit of x).
int64_t TreeBytes(const PlanSpec& spec, const Shares& shares) {
  const int ranks = spec.mesh.sequence_ranks();
  std::vector<IntervalSet> asking;
  for (int s = 0; s < ranks; ++s) asking.push_back(shares.QueriesAsking(s));
  int64_t rows = 0;
  for (int root = 0; root < ranks; ++root) {
    std::vector<const IntervalSet*> members{nullptr};
    for (int step = 1; step < ranks; ++step) {
      const IntervalSet& queries = asking[(root + step) % ranks];
      if (shares.QueryRowsIn(root, queries) > 0) members.push_back(&queries);
    }
    for (size_t x = 1; x < members.size(); ++x) {
      std::vector<Range> subtree;
      for (size_t y = x; y < std::min(members.size(), x + (x & -x)); ++y) {
        subtree.insert(subtree.end(), members[y]->ranges().begin(), members[y]->ranges().end());
      }
      rows += shares.QueryRowsIn(root, UnionOf(std::move(subtree)));
    }
  }
  return rows * shares.total_query_heads() * (shares.query_bytes() + shares.partial_bytes());
}

}  // namespace

int64_t PredictedBytes(const PlanSpec& spec) {
  const Shares shares(spec);
  const bool tree = spec.method == SequenceMethod::kTree;
  return HeadExchangeBytes(spec, shares) + (tree ? TreeBytes(spec, shares) : KeyValueBytes(spec, shares));
}

int64_t PredictedBytes(const DecodeSpec& spec) {
  const int64_t row_heads = spec.rows * spec.heads;
  const int64_t others = spec.ranks - 1;
  const int64_t partial_bytes = (int64_t{spec.v_width} + 1) * 4;
  switch (spec.method) {
    case DecodeMethod::kHead:
    case DecodeMethod::kTpla:
      break;
    case DecodeMethod::kGatherQuery:
      return row_heads * others * (spec.qk_width * static_cast<int64_t>(SizeInBytes(spec.dtype)) + partial_bytes);
    case DecodeMethod::kReplicatedQuery:
      return row_heads * others * partial_bytes;
    case DecodeMethod::kTree:
      return 2 * row_heads * others * partial_bytes;
  }
  return 0;
}

}  // namespace tessera
