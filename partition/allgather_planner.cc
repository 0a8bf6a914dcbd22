// All-gather of K and V (as in Llama 3 context parallelism): one exchange of the needed rows, then all attends.
// Backward: the gradients of the gathered rows go back to their owners in one exchange, in fp32, and are added there in
// rank order.
#include "partition/head_exchange.h"
#include "partition/shard.h"

namespace tessera {
namespace {

class AllGather {
 public:
  AllGather(const PlannerContext& context, const Shard& shard, int group, ProgramBuilder& builder)
      : context_(context), shard_(shard), group_(group), builder_(builder), me_(shard.sequence_rank) {
    for (int s = 0; s < context.sequence_ranks; ++s) {
      needed_.push_back(context.NeededRows(me_, s));
      if (s != me_) gathered_rows_ += needed_[s].size();
    }
  }

  void Emit() {
    const PlanSpec& spec = context_.spec;
    const std::vector<SlotId> own = {shard_.key, shard_.value};
    std::vector<SlotId> gathered = {kNone, kNone};
    if (gathered_rows_ > 0) gathered = AddSlots(KeyValueSlots(spec, shard_.kv_heads, gathered_rows_), builder_);
    if (context_.sequence_ranks > 1) {
      for (int i : {0, 1}) EmitExchange(group_, WorldRank(me_), OwnParts(own[i]), GatheredParts(gathered[i]), builder_);
    }
    // Own keys first: they are here while the exchange is under way.
    EmitAttend(spec.pass, shard_, own[0], own[1], shard_.key_gradient, shard_.value_gradient, OwnTiles(), builder_);
    if (spec.pass == Pass::kForward) {
      EmitAttend(spec.pass, shard_, gathered[0], gathered[1], kNone, kNone, GatheredTiles(), builder_);
    } else if (context_.sequence_ranks > 1) {
      EmitGradients(gathered);
    }
  }

 private:
  int WorldRank(int sequence_rank) const { return context_.spec.mesh.rank_of(sequence_rank, shard_.head_rank); }
  std::vector<Piece> Queries() const {
    return InPlace(context_.query_layout.segments(me_), IntervalSet({0, context_.query_layout.rows(me_)}));
  }

  // What the others need of this rank's rows.
  std::vector<ExchangePart> OwnParts(SlotId own) const {
    std::vector<ExchangePart> parts;
    for (int s = 0; s < context_.sequence_ranks; ++s) {
      if (s == me_) continue;
      const IntervalSet theirs = context_.NeededRows(s, me_);
      for (const Range& r : theirs.ranges()) parts.push_back({WorldRank(s), {own, r, shard_.kv_heads}});
    }
    return parts;
  }
  // What arrives is stored owner after owner, each owner's needed rows in its own order.
  std::vector<ExchangePart> GatheredParts(SlotId gathered) const {
    std::vector<ExchangePart> parts;
    int64_t row = 0;
    for (int s = 0; s < context_.sequence_ranks; ++s) {
      const int64_t rows = needed_[s].size();
      if (s == me_ || rows == 0) continue;
      parts.push_back({WorldRank(s), {gathered, {row, row + rows}, shard_.kv_heads}});
      row += rows;
    }
    return parts;
  }

  std::vector<Tile> OwnTiles() const {
    std::vector<Tile> tiles;
    AppendTiles(context_.index, Queries(), InPlace(context_.key_layout.segments(me_), needed_[me_]), tiles);
    return tiles;
  }
  std::vector<Tile> GatheredTiles() const {
    std::vector<Tile> tiles;
    int64_t row = 0;
    for (int s = 0; s < context_.sequence_ranks; ++s) {
      if (s == me_) continue;
      AppendTiles(context_.index, Queries(), Packed(context_.key_layout.segments(s), needed_[s], row), tiles);
      row += needed_[s].size();
    }
    return tiles;
  }

  void EmitGradients(const std::vector<SlotId>& gathered) {
    const PlanSpec& spec = context_.spec;
    std::vector<SlotId> leaving = {kNone, kNone};
    if (gathered_rows_ > 0) {
      leaving = AddSlots(KeyValueGradientSlots(spec, shard_.kv_heads, gathered_rows_), builder_);
      EmitClear(spec.pass, leaving, {0, gathered_rows_}, builder_);
      EmitAttend(spec.pass, shard_, gathered[0], gathered[1], leaving[0], leaving[1], GatheredTiles(), builder_);
    }
    int64_t arriving_rows = 0;
    for (int s = 0; s < context_.sequence_ranks; ++s) {
      if (s != me_) arriving_rows += context_.NeededRows(s, me_).size();
    }
    std::vector<SlotId> arriving = {kNone, kNone};
    if (arriving_rows > 0) arriving = AddSlots(KeyValueGradientSlots(spec, shard_.kv_heads, arriving_rows), builder_);
    const std::vector<SlotId> own = {shard_.key_gradient, shard_.value_gradient};
    for (int i : {0, 1}) {
      std::vector<ExchangePart> receives;
      std::vector<AddStep> adds;
      int64_t row = 0;
      for (int s = 0; s < context_.sequence_ranks; ++s) {
        const IntervalSet theirs = s == me_ ? IntervalSet() : context_.NeededRows(s, me_);
        if (theirs.empty()) continue;
        receives.push_back({WorldRank(s), {arriving[i], {row, row + theirs.size()}, shard_.kv_heads}});
        adds.push_back({arriving[i], own[i], {}});
        for (const Range& r : theirs.ranges())
          adds.back().rows.push_back({row + theirs.CountBefore(r.begin), r.begin, r.size()});
        row += theirs.size();
      }
      EmitExchange(group_, WorldRank(me_), GatheredParts(leaving[i]), std::move(receives), builder_);
      for (AddStep& add : adds) builder_.Add(std::move(add));
    }
  }

  const PlannerContext& context_;
  const Shard& shard_;
  const int group_;
  ProgramBuilder& builder_;
  const int me_;
  std::vector<IntervalSet> needed_;  // per owner
  int64_t gathered_rows_ = 0;
};

}  // namespace

void EmitAllGather(const PlannerContext& context, const Shard& shard, int group, ProgramBuilder& builder) {
  AllGather(context, shard, group, builder).Emit();
}

}  // namespace tessera
