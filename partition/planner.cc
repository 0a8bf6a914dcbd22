// From a spec to programs: the head exchange around one method of the sequence axis.
#include "partition/planner.h"

#include <algorithm>
#include <numeric>

#include "partition/planner_context.h"

namespace tessera {
namespace {

// Ownership per sequence rank: the shards of a head group one after the other.
Layout MergeHeadGroups(const Layout& layout, const Mesh& mesh) {
  if (mesh.head_ranks == 1) return layout;
  std::vector<std::vector<Segment>> merged(mesh.sequence_ranks());
  for (int rank = 0; rank < mesh.size(); ++rank) {
    auto& shard = merged[mesh.sequence_of(rank)];
    for (const Segment& segment : layout.segments(rank)) {
      // Neighbours in a head group usually hold neighbouring tokens: fewer segments mean fewer tiles.
      if (!shard.empty() && shard.back().stride == segment.stride &&
          shard.back().token(shard.back().count) == segment.begin) {
        shard.back().count += segment.count;
      } else {
        shard.push_back(segment);
      }
    }
  }
  return Layout::FromSegments(layout.tokens(), std::move(merged)).value();  // a regrouping of a valid layout is valid
}

HeadRange QueryHeadsOf(const Problem& problem, const Mesh& mesh, int head_rank) {
  const int64_t heads = problem.query_heads;
  return {static_cast<int>(heads * head_rank / mesh.head_ranks),
          static_cast<int>(heads * (head_rank + 1) / mesh.head_ranks)};
}
HeadRange KvHeadsOf(const Problem& problem, HeadRange query_heads) {
  if (query_heads.empty()) return {};
  return {query_heads.begin / problem.group(), (query_heads.end + problem.group() - 1) / problem.group()};
}

// Whether every peer's parts are one piece of the same slot, so that an all-to-all can move them in place.
bool OnePiece(const ProgramBuilder& builder, const std::vector<ExchangePart>& parts, int rank) {
  for (size_t i = 0; i < parts.size(); ++i) {
    if (parts[i].peer == rank) continue;
    const Region& region = parts[i].region;
    if (region.slot != parts[0].region.slot) return false;
    if (region.heads != builder.slot(region.slot).heads && region.rows.size() > 1) return false;
    if (i > 0 && parts[i - 1].peer == parts[i].peer) {
      const Region& previous = parts[i - 1].region;
      if (previous.rows.end != region.rows.begin || previous.heads != region.heads)
        return false;
    }
  }
  return true;
}

SlotId StagingFor(ProgramBuilder& builder, const std::vector<ExchangePart>& parts, int rank) {
  if (OnePiece(builder, parts, rank)) return kNone;
  int64_t bytes = 0;
  for (const ExchangePart& part : parts) {
    const Slot& slot = builder.slot(part.region.slot);
    if (part.peer != rank)
      bytes += part.region.rows.size() * part.region.heads.size() * slot.width * slot.element_bytes;
  }
  return builder.AddSlot({SlotContent::kStaging, false, bytes, {0, 1}, 1, 1});
}

// One tensor through the head exchange: `mine` (all heads, this rank's rows) to `shard` (this rank's heads, the group's
// rows) or back. Rows are restricted to `rows` (in the row space of the shard).
struct HeadExchange {
  const PlannerContext& context;
  int rank;
  int group;
  const Layout& layout;  // over all ranks, of this tensor's tokens
  bool kv;               // key/value heads instead of query heads

  HeadRange HeadsOf(int head_rank) const {
    const HeadRange heads = QueryHeadsOf(context.spec.problem, context.spec.mesh, head_rank);
    return kv ? KvHeadsOf(context.spec.problem, heads) : heads;
  }
  // Rows of `member`'s part of the shard that are exchanged, in shard row numbers, with the first row of the part.
  std::pair<IntervalSet, int64_t> PartOf(int member, const IntervalSet& rows) const {
    const Mesh& mesh = context.spec.mesh;
    const int sequence = mesh.sequence_of(rank);
    int64_t first = 0;
    for (int m = 0; m < member; ++m) first += layout.rows(mesh.rank_of(sequence, m));
    const int64_t count = layout.rows(mesh.rank_of(sequence, member));
    return {rows.Intersection(IntervalSet({first, first + count})), first};
  }

  void Emit(SlotId mine, SlotId shard, const IntervalSet& rows, bool to_shard, ProgramBuilder& builder) const {
    const Mesh& mesh = context.spec.mesh;
    const int sequence = mesh.sequence_of(rank);
    const int me = mesh.head_of(rank);
    std::vector<ExchangePart> on_rows, on_shard;
    const auto [own_rows, own_first] = PartOf(me, rows);
    for (int member = 0; member < mesh.head_ranks; ++member) {
      const int peer = mesh.rank_of(sequence, member);
      const HeadRange heads = HeadsOf(member);
      if (!heads.empty()) {
        for (const Range& r : own_rows.ranges()) {
          on_rows.push_back({peer, {mine, {r.begin - own_first, r.end - own_first}, heads}});
        }
      }
      const HeadRange own_heads = HeadsOf(me);
      if (!own_heads.empty()) {
        const IntervalSet part = PartOf(member, rows).first;
        for (const Range& r : part.ranges()) on_shard.push_back({peer, {shard, r, own_heads}});
      }
    }
    if (!to_shard) std::swap(on_rows, on_shard);
    EmitExchange(group, rank, std::move(on_rows), std::move(on_shard), builder);
  }
};

void EmitMethod(const PlannerContext& context, const Shard& shard, int group, ProgramBuilder& builder) {
  switch (context.spec.method) {
    case SequenceMethod::kRing:
      return EmitRing(context, shard, builder);
    case SequenceMethod::kAllGather:
      return EmitAllGather(context, shard, group, builder);
    case SequenceMethod::kTree:
      return EmitTree(context, shard, builder);
  }
}

RankProgram Build(const PlannerContext& context, int rank) {
  const PlanSpec& spec = context.spec;
  const Problem& problem = spec.problem;
  const Mesh& mesh = spec.mesh;
  ProgramBuilder builder(rank);
  const HeadRange all_heads{0, problem.query_heads};
  const HeadRange all_kv{0, problem.kv_heads};
  const int64_t my_queries = spec.query_layout.rows(rank);
  const int64_t my_keys = spec.key_layout.rows(rank);
  const int element = static_cast<int>(SizeInBytes(problem.dtype));
  const auto external = [&](Slot slot) {
    slot.external = true;
    builder.AddSlot(slot);
  };
  external(QuerySlotOf(problem, all_heads, my_queries));
  external(KeySlotOf(problem, all_kv, my_keys));
  external(ValueSlotOf(problem, all_kv, my_keys));
  external({SlotContent::kResult, false, my_queries, all_heads, problem.v_width, element});
  external({SlotContent::kResultLse, false, my_queries, all_heads, 1, 4});

  Shard shard;
  shard.sequence_rank = mesh.sequence_of(rank);
  shard.head_rank = mesh.head_of(rank);
  shard.query_heads = QueryHeadsOf(problem, mesh, shard.head_rank);
  shard.kv_heads = KvHeadsOf(problem, shard.query_heads);
  const int64_t shard_queries = context.query_layout.rows(shard.sequence_rank);
  const int64_t shard_keys = context.key_layout.rows(shard.sequence_rank);
  const bool exchange_heads = mesh.head_ranks > 1;
  const IntervalSet all_query_rows({0, shard_queries});

  int head_group = kNone;
  if (exchange_heads) {
    std::vector<int> members(mesh.head_ranks);
    for (int h = 0; h < mesh.head_ranks; ++h) members[h] = mesh.rank_of(shard.sequence_rank, h);
    head_group = builder.AddGroup(members);
  }
  int sequence_group = kNone;
  if (spec.method == SequenceMethod::kAllGather && mesh.sequence_ranks() > 1) {
    std::vector<int> members(mesh.sequence_ranks());
    for (int s = 0; s < mesh.sequence_ranks(); ++s) members[s] = mesh.rank_of(s, shard.head_rank);
    sequence_group = builder.AddGroup(members);
  }

  if (exchange_heads) {
    IntervalSet asked;  // keys that no query attends stay where they are
    for (const IntervalSet& keys : context.needed_keys) asked = asked.Union(keys);
    const IntervalSet key_rows = context.key_layout.RowsOf(shard.sequence_rank, asked);
    shard.query = builder.AddSlot(QuerySlotOf(problem, shard.query_heads, shard_queries));
    shard.key = builder.AddSlot(KeySlotOf(problem, shard.kv_heads, shard_keys));
    shard.value = builder.AddSlot(ValueSlotOf(problem, shard.kv_heads, shard_keys));
    HeadExchange{context, rank, head_group, spec.query_layout, false}.Emit(kQuerySlot, shard.query, all_query_rows,
                                                                           true, builder);
    const HeadExchange kv{context, rank, head_group, spec.key_layout, true};
    kv.Emit(kKeySlot, shard.key, key_rows, true, builder);
    kv.Emit(kValueSlot, shard.value, key_rows, true, builder);
  } else {
    shard.query = kQuerySlot;
    shard.key = kKeySlot;
    shard.value = kValueSlot;
  }

  SlotId result = kResultSlot;
  SlotId result_lse = kResultLseSlot;
  if (!shard.query_heads.empty()) {
    shard.partial_output = builder.AddSlot(PartialOutputSlotOf(problem, shard.query_heads, shard_queries));
    shard.partial_lse = builder.AddSlot(PartialLseSlotOf(shard.query_heads, shard_queries));
    if (shard_queries > 0) builder.Add(ClearStep{shard.partial_output, shard.partial_lse, {0, shard_queries}});
    EmitMethod(context, shard, sequence_group, builder);
    if (exchange_heads) {
      result =
          builder.AddSlot({SlotContent::kResult, false, shard_queries, shard.query_heads, problem.v_width, element});
      result_lse = builder.AddSlot({SlotContent::kResultLse, false, shard_queries, shard.query_heads, 1, 4});
    }
    if (shard_queries > 0) builder.Add(FinishStep{shard.partial_output, shard.partial_lse, result, result_lse});
  }
  if (exchange_heads) {
    const HeadExchange back{context, rank, head_group, spec.query_layout, false};
    back.Emit(kResultSlot, result, all_query_rows, false, builder);
    back.Emit(kResultLseSlot, result_lse, all_query_rows, false, builder);
  }
  return builder.Take();
}

}  // namespace

PlannerContext::PlannerContext(const PlanSpec& plan_spec)
    : spec(plan_spec),
      index(plan_spec.problem.mask),
      sequence_ranks(plan_spec.mesh.sequence_ranks()),
      query_layout(MergeHeadGroups(plan_spec.query_layout, plan_spec.mesh)),
      key_layout(MergeHeadGroups(plan_spec.key_layout, plan_spec.mesh)) {
  for (int s = 0; s < sequence_ranks; ++s) needed_keys.push_back(index.KeysFor(query_layout.segments(s)));
  FindNeeds();
}

void PlannerContext::FindNeeds() {
  struct Owned {
    Range tokens;  // the hull of a segment
    int owner;
    bool dense;
  };
  std::vector<Owned> owned;
  int64_t longest = 0;
  for (int s = 0; s < sequence_ranks; ++s) {
    for (const Segment& segment : key_layout.segments(s)) {
      owned.push_back({{segment.begin, segment.last() + 1}, s, segment.stride == 1});
      longest = std::max(longest, owned.back().tokens.size());
    }
  }
  std::sort(owned.begin(), owned.end(), [](const Owned& a, const Owned& b) { return a.tokens.begin < b.tokens.begin; });
  needs_.resize(static_cast<size_t>(sequence_ranks) * sequence_ranks);
  for (int reader = 0; reader < sequence_ranks; ++reader) {
    for (const Range& keys : needed_keys[reader].ranges()) {
      // No hull that starts more than the longest one earlier can reach these keys.
      auto it = std::lower_bound(owned.begin(), owned.end(), keys.begin - longest,
                                 [](const Owned& o, int64_t begin) { return o.tokens.begin < begin; });
      for (; it != owned.end() && it->tokens.begin < keys.end; ++it) {
        if (it->tokens.end <= keys.begin) continue;
        const size_t pair = static_cast<size_t>(reader) * sequence_ranks + it->owner;
        needs_[pair] = needs_[pair] || it->dense || !key_layout.RowsOf(it->owner, IntervalSet(keys)).empty();
      }
    }
  }
}

std::vector<Piece> InPlace(std::span<const Segment> shard, const IntervalSet& rows) {
  std::vector<Piece> pieces;
  for (const Range& range : rows.ranges()) {
    int64_t row = range.begin;
    for (const Segment& segment : SegmentsOfRows(shard, range)) {
      pieces.push_back({row, segment});
      row += segment.count;
    }
  }
  return pieces;
}

std::vector<Piece> Packed(std::span<const Segment> shard, const IntervalSet& rows, int64_t first_packed_row) {
  std::vector<Piece> pieces = InPlace(shard, rows);
  for (Piece& piece : pieces) {
    piece.row = first_packed_row;
    first_packed_row += piece.tokens.count;
  }
  return pieces;
}

void AppendTiles(const MaskIndex& index, std::span<const Piece> queries, std::span<const Piece> keys,
                 std::vector<Tile>& tiles) {
  for (const Piece& q : queries) {
    for (const Piece& k : keys) {
      if (index.AnyPair(q.tokens, k.tokens)) tiles.push_back({q.row, q.tokens, k.row, k.tokens});
    }
  }
}

void EmitAttend(const Shard& shard, SlotId key, SlotId value, std::vector<Tile> tiles, ProgramBuilder& builder) {
  if (tiles.empty()) return;
  builder.Add(AttendStep{shard.query, key, value, shard.partial_output, shard.partial_lse, shard.query_heads,
                         std::move(tiles)});
}

void EmitExchange(int group, int rank, std::vector<ExchangePart> sends, std::vector<ExchangePart> receives,
                  ProgramBuilder& builder) {
  const SlotId send_staging = StagingFor(builder, sends, rank);
  const SlotId receive_staging = StagingFor(builder, receives, rank);
  builder.Add(ExchangeStep{group, std::move(sends), std::move(receives), send_staging, receive_staging});
}

namespace {
Slot TensorSlot(SlotContent content, const Problem& problem, HeadRange heads, int64_t rows, int width) {
  return {content, false, rows, heads, width, static_cast<int>(SizeInBytes(problem.dtype))};
}
}  // namespace

Slot QuerySlotOf(const Problem& problem, HeadRange heads, int64_t rows) {
  return TensorSlot(SlotContent::kQuery, problem, heads, rows, problem.qk_width);
}
Slot KeySlotOf(const Problem& problem, HeadRange kv_heads, int64_t rows) {
  return TensorSlot(SlotContent::kKey, problem, kv_heads, rows, problem.qk_width);
}
Slot ValueSlotOf(const Problem& problem, HeadRange kv_heads, int64_t rows) {
  return TensorSlot(SlotContent::kValue, problem, kv_heads, rows, problem.v_width);
}
Slot PartialOutputSlotOf(const Problem& problem, HeadRange heads, int64_t rows) {
  return {SlotContent::kPartialOutput, false, rows, heads, problem.v_width, 4};
}
Slot PartialLseSlotOf(HeadRange heads, int64_t rows) {
  return {SlotContent::kPartialLse, false, rows, heads, 1, 4};
}

RankProgram BuildRankProgram(const PlanSpec& spec, int rank) {
  return Build(PlannerContext(spec), rank);
}

Plan BuildPlan(const PlanSpec& spec) {
  Plan plan;
  plan.spec = spec;
  const PlannerContext context(plan.spec);
  for (int rank = 0; rank < spec.mesh.size(); ++rank) plan.programs.push_back(Build(context, rank));
  return plan;
}

}  // namespace tessera
