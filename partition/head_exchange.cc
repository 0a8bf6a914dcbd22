#include "partition/head_exchange.h"

namespace tessera {
namespace {

// Whether every peer's parts are one piece of the same slot, so that an all-to-all can move them in place.
bool OnePiece(const ProgramBuilder& builder, const std::vector<ExchangePart>& parts, int rank) {
  for (size_t i = 0; i < parts.size(); ++i) {
    if (parts[i].peer == rank) continue;
    const Region& region = parts[i].region;
    if (region.slot != parts[0].region.slot) return false;
    if (region.heads != builder.slot(region.slot).heads && region.rows.size() > 1) return false;
    if (i > 0 && parts[i - 1].peer == parts[i].peer) {
      const Region& previous = parts[i - 1].region;
      if (previous.rows.end != region.rows.begin || previous.heads != region.heads) return false;
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

}  // namespace

HeadRange QueryHeadsOf(const Problem& problem, const Mesh& mesh, int head_rank) {
  const int64_t heads = problem.query_heads;
  return {static_cast<int>(heads * head_rank / mesh.head_ranks),
          static_cast<int>(heads * (head_rank + 1) / mesh.head_ranks)};
}

HeadRange KvHeadsOf(const Problem& problem, HeadRange query_heads) {
  if (query_heads.empty()) return {};
  return {query_heads.begin / problem.group(), (query_heads.end + problem.group() - 1) / problem.group()};
}

void EmitExchange(int group, int rank, std::vector<ExchangePart> sends, std::vector<ExchangePart> receives,
                  ProgramBuilder& builder) {
  const SlotId send_staging = StagingFor(builder, sends, rank);
  const SlotId receive_staging = StagingFor(builder, receives, rank);
  builder.Add(ExchangeStep{group, std::move(sends), std::move(receives), send_staging, receive_staging});
}

HeadRange HeadExchange::HeadsOf(int head_rank) const {
  const HeadRange heads = QueryHeadsOf(context_.spec.problem, context_.spec.mesh, head_rank);
  return kv_ ? KvHeadsOf(context_.spec.problem, heads) : heads;
}

std::pair<IntervalSet, int64_t> HeadExchange::PartOf(int member, const IntervalSet& rows) const {
  const Mesh& mesh = context_.spec.mesh;
  const int sequence = mesh.sequence_of(rank_);
  int64_t first = 0;
  for (int m = 0; m < member; ++m) first += layout_.rows(mesh.rank_of(sequence, m));
  const int64_t count = layout_.rows(mesh.rank_of(sequence, member));
  return {rows.Intersection(IntervalSet({first, first + count})), first};
}

// The parts of one side that lie in this rank's own rows: for each member, its heads of the rows in `slot_of(member)`.
std::vector<ExchangePart> HeadExchange::OwnRowParts(const IntervalSet& rows,
                                                    const std::function<SlotId(int)>& slot_of) const {
  const Mesh& mesh = context_.spec.mesh;
  const auto [own_rows, own_first] = PartOf(mesh.head_of(rank_), rows);
  std::vector<ExchangePart> parts;
  for (int member = 0; member < mesh.head_ranks; ++member) {
    const HeadRange heads = HeadsOf(member);
    if (heads.empty()) continue;
    for (const Range& r : own_rows.ranges()) {
      parts.push_back({mesh.rank_of(mesh.sequence_of(rank_), member),
                       {slot_of(member), {r.begin - own_first, r.end - own_first}, heads}});
    }
  }
  return parts;
}

// The parts of the other side, in the shard: for each member, its rows of this rank's heads.
std::vector<ExchangePart> HeadExchange::ShardParts(const IntervalSet& rows, SlotId shard) const {
  const Mesh& mesh = context_.spec.mesh;
  const HeadRange heads = HeadsOf(mesh.head_of(rank_));
  std::vector<ExchangePart> parts;
  if (heads.empty()) return parts;
  for (int member = 0; member < mesh.head_ranks; ++member) {
    const IntervalSet part = PartOf(member, rows).first;
    for (const Range& r : part.ranges()) {
      parts.push_back({mesh.rank_of(mesh.sequence_of(rank_), member), {shard, r, heads}});
    }
  }
  return parts;
}

void HeadExchange::ToShard(SlotId mine, SlotId shard, const IntervalSet& rows, ProgramBuilder& builder) const {
  EmitExchange(group_, rank_, OwnRowParts(rows, [&](int) { return mine; }), ShardParts(rows, shard), builder);
}

void HeadExchange::ToOwners(SlotId shard, SlotId mine, const IntervalSet& rows, ProgramBuilder& builder) const {
  EmitExchange(group_, rank_, ShardParts(rows, shard), OwnRowParts(rows, [&](int) { return mine; }), builder);
}

void HeadExchange::SumAtOwners(SlotId shard, SlotId mine, const IntervalSet& rows, ProgramBuilder& builder) const {
  const Mesh& mesh = context_.spec.mesh;
  const auto [own_rows, own_first] = PartOf(mesh.head_of(rank_), rows);
  std::vector<SlotId> arriving(mesh.head_ranks, kNone);
  for (int member = 0; member < mesh.head_ranks && !own_rows.empty(); ++member) {
    Slot slot = builder.slot(mine);
    slot.heads = HeadsOf(member);
    if (!slot.heads.empty()) arriving[member] = builder.AddSlot(slot);
  }
  EmitExchange(group_, rank_, ShardParts(rows, shard), OwnRowParts(rows, [&](int member) { return arriving[member]; }),
               builder);
  for (SlotId source : arriving) {
    if (source == kNone) continue;
    AddStep add{source, mine, {}};
    for (const Range& r : own_rows.ranges()) add.rows.push_back({r.begin - own_first, r.begin - own_first, r.size()});
    builder.Add(std::move(add));
  }
}

}  // namespace tessera
