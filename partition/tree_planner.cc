// Tree attention (Shyam et al. 2024), for every owner of queries in turn: query rows go down a binomial tree over the
// ranks whose keys they attend, fp32 partials come up and are merged. Keys never move, so it suits few queries over
// many keys.
//
// Backward: the whole query side goes down, key and value gradients stay where the keys are, and fp32 query gradients
// come up and are added.
//
// The merges of root j are emitted after the attends of root j + 1, so that compute goes on while partials travel. All
// ranks use the same lag, which keeps the order of messages between any pair of ranks equal at both ends.
#include <algorithm>
#include <optional>

#include "partition/shard.h"

namespace tessera {
namespace {

// One root's tree as seen by one member. Members are numbered along the ring from the root, which is 0; the parent of x
// clears its lowest set bit.
struct TreeRole {
  std::vector<int> members;          // sequence ranks
  std::vector<IntervalSet> subtree;  // per member: the root's query rows needed in its subtree
  int self = kNone;
  Shard working;  // this rank's slots for the root's queries, set on the way down
};

int LowestBit(int x) {
  return x & -x;
}

class Tree {
 public:
  Tree(const PlannerContext& context, const Shard& shard, ProgramBuilder& builder)
      : context_(context), shard_(shard), builder_(builder), asking_(context.sequence_ranks) {}

  void Emit() {
    std::vector<TreeRole> roles;
    for (int root = 0; root < context_.sequence_ranks; ++root) roles.push_back(RoleIn(root));
    AllocateSlots(roles);
    for (int root = 0; root <= context_.sequence_ranks; ++root) {
      if (root < context_.sequence_ranks && roles[root].self != kNone) Descend(roles[root], root);
      if (root > 0 && roles[root - 1].self != kNone) Ascend(roles[root - 1]);
    }
  }

 private:
  // Queries that attend keys of sequence rank `s`.
  const IntervalSet& Asking(int s) const {
    if (!asking_[s]) asking_[s] = context_.index.QueriesFor(context_.key_layout.segments(s));
    return *asking_[s];
  }

  TreeRole RoleIn(int root) const {
    TreeRole role;
    if (root != shard_.sequence_rank && !context_.Needs(root, shard_.sequence_rank)) return role;
    std::vector<IntervalSet> rows;
    for (int step = 0; step < context_.sequence_ranks; ++step) {
      const int s = (root + step) % context_.sequence_ranks;
      if (step > 0 && !context_.Needs(root, s)) continue;
      IntervalSet asked = context_.query_layout.RowsOf(root, Asking(s));
      if (s == shard_.sequence_rank) role.self = static_cast<int>(role.members.size());
      role.members.push_back(s);
      rows.push_back(std::move(asked));
    }
    const int count = static_cast<int>(role.members.size());
    role.subtree.resize(count);
    for (int x = 1; x < count; ++x) {
      for (int y = x; y < std::min(x + LowestBit(x), count); ++y) role.subtree[x] = role.subtree[x].Union(rows[y]);
    }
    role.subtree[0] = IntervalSet({0, context_.query_layout.rows(root)});
    return role;
  }

  // Largest subtree first: it has the longest way to go.
  static std::vector<int> Children(const TreeRole& role) {
    const int count = static_cast<int>(role.members.size());
    std::vector<int> children;
    const int limit = role.self == 0 ? count : LowestBit(role.self);
    for (int bit = 1; bit < limit && role.self + bit < count; bit *= 2) children.push_back(role.self + bit);
    std::reverse(children.begin(), children.end());
    return children;
  }

  void AllocateSlots(const std::vector<TreeRole>& roles) {
    int64_t own_rows = 0;    // as an inner node or leaf
    int64_t child_rows = 0;  // partials that arrive
    int guests = 0;
    int arrivals = 0;
    for (const TreeRole& role : roles) {
      if (role.self == kNone) continue;
      if (role.self != 0) {
        own_rows = std::max(own_rows, role.subtree[role.self].size());
        ++guests;
      }
      for (int child : Children(role)) {
        child_rows = std::max(child_rows, role.subtree[child].size());
        ++arrivals;
      }
    }
    const PlanSpec& spec = context_.spec;
    for (int i = 0; i < std::min(2, guests); ++i) {
      guest_side_.push_back(AddSlots(QuerySideSlots(spec, shard_.query_heads, own_rows), builder_));
      guest_partials_.push_back(AddSlots(PartialSlots(spec, shard_.query_heads, own_rows), builder_));
    }
    for (int i = 0; i < std::min(2, arrivals); ++i) {
      arriving_.push_back(AddSlots(PartialSlots(spec, shard_.query_heads, child_rows), builder_));
    }
  }

  int WorldRank(const TreeRole& role, int member) const {
    return context_.spec.mesh.rank_of(role.members[member], shard_.head_rank);
  }
  // Where row `row` of the root's shard is stored at member x: in place at the root, packed elsewhere.
  static int64_t Stored(const TreeRole& role, int x, int64_t row) {
    return x == 0 ? row : role.subtree[x].CountBefore(row);
  }

  void Descend(TreeRole& role, int root) {
    const int self = role.self;
    Shard& working = role.working;
    working = shard_;
    if (self != 0) {
      const size_t buffer = guests_++ % guest_side_.size();
      working.query_side = guest_side_[buffer];
      working.partials = guest_partials_[buffer];
      const int parent = self - LowestBit(self);
      ForEachRun(role, self, self, [&](const Region& region) { builder_.Receive(WorldRank(role, parent), region); });
      EmitClear(context_.spec.pass, working.partials, {0, role.subtree[self].size()}, builder_);
    }
    for (int child : Children(role)) {
      ForEachRun(role, self, child, [&](const Region& region) { builder_.Send(WorldRank(role, child), region); });
    }
    const auto queries = context_.query_layout.segments(root);
    const IntervalSet& rows = role.subtree[self];
    const auto keys = context_.key_layout.segments(shard_.sequence_rank);
    const IntervalSet key_rows = context_.NeededRows(root, shard_.sequence_rank);
    std::vector<Tile> tiles;
    AppendTiles(context_.index, self == 0 ? InPlace(queries, rows) : Packed(queries, rows), InPlace(keys, key_rows),
                tiles);
    EmitAttend(context_.spec.pass, working, shard_.key, shard_.value, shard_.key_gradient, shard_.value_gradient,
               std::move(tiles), builder_);
  }

  // The rows that travel to member `child`, as regions of the query-side slots of member `self`.
  template <typename Visit>
  void ForEachRun(const TreeRole& role, int self, int child, Visit visit) const {
    for (SlotId slot : role.working.query_side) {
      for (const Range& r : role.subtree[child].ranges()) {
        const int64_t row = Stored(role, self, r.begin);
        visit(Region{slot, {row, row + r.size()}, shard_.query_heads});
      }
    }
  }

  void Ascend(const TreeRole& role) {
    const Shard& working = role.working;
    for (int child : Children(role)) {
      const std::vector<SlotId>& arriving = arriving_[arrivals_++ % arriving_.size()];
      const Range rows{0, role.subtree[child].size()};
      for (SlotId slot : arriving)
        builder_.Receive(WorldRank(role, child), {slot, rows, shard_.query_heads}, Channel::kPartial);
      std::vector<MergeRows> runs;
      for (const Range& r : role.subtree[child].ranges()) {
        runs.push_back({Stored(role, child, r.begin), Stored(role, role.self, r.begin), r.size()});
      }
      EmitCombine(context_.spec.pass, arriving, working.partials, std::move(runs), builder_);
    }
    if (role.self == 0) return;
    const int parent = role.self - LowestBit(role.self);
    const Range rows{0, role.subtree[role.self].size()};
    for (SlotId slot : working.partials) {
      builder_.Send(WorldRank(role, parent), {slot, rows, shard_.query_heads}, Channel::kPartial);
    }
  }

  const PlannerContext& context_;
  const Shard& shard_;
  ProgramBuilder& builder_;
  mutable std::vector<std::optional<IntervalSet>> asking_;  // cache of Asking()
  std::vector<std::vector<SlotId>> guest_side_, guest_partials_, arriving_;
  size_t guests_ = 0;
  size_t arrivals_ = 0;
};

}  // namespace

void EmitTree(const PlannerContext& context, const Shard& shard, ProgramBuilder& builder) {
  Tree(context, shard, builder).Emit();
}

}  // namespace tessera
