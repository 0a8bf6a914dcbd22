// All-gather of K and V (as in Llama 3 context parallelism): one exchange of the needed rows, then all attends.
#include "partition/planner_context.h"

namespace tessera {

void EmitAllGather(const PlannerContext& context, const Shard& shard, int group, ProgramBuilder& builder) {
  const int me = shard.sequence_rank;
  const Mesh& mesh = context.spec.mesh;
  const auto queries = context.query_layout.segments(me);
  const std::vector<Piece> query_pieces = InPlace(queries, IntervalSet({0, context.query_layout.rows(me)}));

  // What arrives is stored owner after owner, each owner's needed rows in its own order.
  std::vector<IntervalSet> needed(context.sequence_ranks);
  int64_t gathered_rows = 0;
  for (int s = 0; s < context.sequence_ranks; ++s) {
    needed[s] = context.NeededRows(me, s);
    if (s != me) gathered_rows += needed[s].size();
  }

  SlotId gathered_key = kNone;
  SlotId gathered_value = kNone;
  std::vector<Tile> gathered_tiles;
  if (context.sequence_ranks > 1) {
    if (gathered_rows > 0) {
      gathered_key = builder.AddSlot(KeySlotOf(context.spec.problem, shard.kv_heads, gathered_rows));
      gathered_value = builder.AddSlot(ValueSlotOf(context.spec.problem, shard.kv_heads, gathered_rows));
    }
    const auto exchange = [&](SlotId own, SlotId gathered) {
      std::vector<ExchangePart> sends, receives;
      int64_t row = 0;
      for (int s = 0; s < context.sequence_ranks; ++s) {
        if (s == me) continue;
        const int peer = mesh.rank_of(s, shard.head_rank);
        const IntervalSet theirs = context.NeededRows(s, me);
        for (const Range& r : theirs.ranges()) sends.push_back({peer, {own, r, shard.kv_heads}});
        if (const int64_t rows = needed[s].size(); rows > 0) {
          receives.push_back({peer, {gathered, {row, row + rows}, shard.kv_heads}});
          row += rows;
        }
      }
      EmitExchange(group, mesh.rank_of(me, shard.head_rank), std::move(sends), std::move(receives), builder);
    };
    exchange(shard.key, gathered_key);
    exchange(shard.value, gathered_value);
    int64_t row = 0;
    for (int s = 0; s < context.sequence_ranks; ++s) {
      if (s == me) continue;
      AppendTiles(context.index, query_pieces, Packed(context.key_layout.segments(s), needed[s], row), gathered_tiles);
      row += needed[s].size();
    }
  }

  // Own keys first: they are here while the exchange is under way.
  std::vector<Tile> own_tiles;
  AppendTiles(context.index, query_pieces, InPlace(context.key_layout.segments(me), needed[me]), own_tiles);
  EmitAttend(shard, shard.key, shard.value, std::move(own_tiles), builder);
  EmitAttend(shard, gathered_key, gathered_value, std::move(gathered_tiles), builder);
}

}  // namespace tessera
