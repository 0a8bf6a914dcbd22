// The exchange among the ranks of a head group: from all heads of a rank's own rows to a few heads of the group's rows,
// and back. Internal to partition.
#pragma once

#include <functional>
#include <utility>
#include <vector>

#include "partition/planner_context.h"

namespace tessera {

// Query heads that a head rank serves, and the key/value heads those read.
HeadRange QueryHeadsOf(const Problem& problem, const Mesh& mesh, int head_rank);
HeadRange KvHeadsOf(const Problem& problem, HeadRange query_heads);

// A collective exchange, with staging slots where the parts are not in place; staging is shared by nothing else.
void EmitExchange(int group, int rank, std::vector<ExchangePart> sends, std::vector<ExchangePart> receives,
                  ProgramBuilder& builder);

// Exchanges of the tensors that share a layout and a kind of heads. "Own" slots hold this rank's rows and all heads,
// "shard" slots the head group's rows and this rank's heads. Only `rows`, in row numbers of the shard, are exchanged.
class HeadExchange {
 public:
  // `layout` is over all ranks; `kv` chooses key/value heads instead of query heads.
  HeadExchange(const PlannerContext& context, int rank, int group, const Layout& layout, bool kv)
      : context_(context), rank_(rank), group_(group), layout_(layout), kv_(kv) {}

  void ToShard(SlotId own, SlotId shard, const IntervalSet& rows, ProgramBuilder& builder) const;
  void ToOwners(SlotId shard, SlotId own, const IntervalSet& rows, ProgramBuilder& builder) const;
  // Like ToOwners, for fp32 gradients: a key/value head may be served by several head ranks, so what arrives is added
  // to `own`, member after member.
  void SumAtOwners(SlotId shard, SlotId own, const IntervalSet& rows, ProgramBuilder& builder) const;

 private:
  HeadRange HeadsOf(int head_rank) const;
  // Rows of `member`'s part of the shard that are exchanged, with the first row of the part.
  std::pair<IntervalSet, int64_t> PartOf(int member, const IntervalSet& rows) const;
  std::vector<ExchangePart> OwnRowParts(const IntervalSet& rows, const std::function<SlotId(int)>& slot_of) const;
  std::vector<ExchangePart> ShardParts(const IntervalSet& rows, SlotId shard) const;

  const PlannerContext& context_;
  int rank_;
  int group_;
  const Layout& layout_;
  bool kv_;
};

}  // namespace tessera
