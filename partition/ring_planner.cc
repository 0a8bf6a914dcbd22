// Ring attention (Liu et al. 2023) on one or two levels, sending exactly the rows that are attended.
//
// Sequence rank (n, l) of N nodes x L local ranks visits owner (n - o, l - i) at position o * L + i. Rows reach it from
// the rank that held them one hop earlier: (n, l - 1) within a node, (n - 1, l) between nodes. Rows which that rank
// does not attend itself are fetched from their owner instead, so no rank ever receives a row it does not use.
//
// In the backward pass the key and value gradients of a visiting block go from the reader to the owner in fp32, and the
// owner adds them in the order of positions: always the same sum.
//
// Why this cannot deadlock under rendezvous: a receive at position T waits for a slot whose block was received two
// blocks earlier and whose forwards are received at positions at most one later (within a node) or by the next node's
// first position (between nodes, which has slots of its own). Every wait leads to a smaller position.
#include <array>

#include "partition/shard.h"

namespace tessera {
namespace {

struct Position {
  int outer = 0;
  int inner = 0;
};

class Ring {
 public:
  Ring(const PlannerContext& context, const Shard& shard, ProgramBuilder& builder)
      : context_(context), shard_(shard), builder_(builder), mesh_(context.spec.mesh) {}

  void Emit() {
    AllocateSlots();
    for (int t = 0; t < context_.sequence_ranks; ++t) {
      const Position position = At(t);
      const int owner = OwnerAt(shard_.sequence_rank, position);
      const bool held = t == 0 || context_.Needs(shard_.sequence_rank, owner);
      const Block block = t == 0 ? OwnBlock() : held ? ReceiveBlock(owner, position) : Block{};
      if (held) ForwardBlock(block, owner, position);
      if (t + 1 < context_.sequence_ranks) SendFromOwner(At(t + 1));
      if (held) AttendBlock(block, owner);
      if (t > 1) CollectGradients(At(t - 1));
    }
    if (context_.sequence_ranks > 1) CollectGradients(At(context_.sequence_ranks - 1));
  }

 private:
  // Rows of an owner's shard present at this rank, packed from row 0 of the slots or in place.
  struct Block {
    IntervalSet rows;
    bool packed = true;
    SlotId key = kNone;
    SlotId value = kNone;
  };

  Position At(int t) const { return {t / mesh_.inner_ranks, t % mesh_.inner_ranks}; }
  int Shifted(int sequence_rank, int outer, int inner) const {
    const int n = (sequence_rank / mesh_.inner_ranks + outer + mesh_.outer_ranks) % mesh_.outer_ranks;
    const int l = (sequence_rank % mesh_.inner_ranks + inner + mesh_.inner_ranks) % mesh_.inner_ranks;
    return n * mesh_.inner_ranks + l;
  }
  int OwnerAt(int reader, Position p) const { return Shifted(reader, -p.outer, -p.inner); }
  int ReaderAt(int owner, Position p) const { return Shifted(owner, p.outer, p.inner); }
  int Predecessor(int reader, Position p) const {
    return p.inner > 0 ? Shifted(reader, 0, -1) : Shifted(reader, -1, 0);
  }
  int WorldRank(int sequence_rank) const { return mesh_.rank_of(sequence_rank, shard_.head_rank); }

  // Two slots for blocks that arrive within the node and two for those that come from the previous node.
  void AllocateSlots() {
    int64_t inner_rows = 0;
    int64_t outer_rows = 0;
    std::array<int, 2> blocks = {0, 0};
    for (int t = 1; t < context_.sequence_ranks; ++t) {
      const Position p = At(t);
      const int64_t rows = context_.NeededRows(shard_.sequence_rank, OwnerAt(shard_.sequence_rank, p)).size();
      if (rows == 0) continue;
      int64_t& most = p.inner > 0 ? inner_rows : outer_rows;
      most = std::max(most, rows);
      ++blocks[p.inner > 0 ? 0 : 1];
    }
    // One size for both levels: a block's gradients need slots with the rows of its keys.
    const int64_t rows = std::max(inner_rows, outer_rows);
    for (int level = 0; level < 2; ++level) {
      for (int i = 0; i < std::min(2, blocks[level]); ++i) {
        slots_[level].push_back(AddSlots(KeyValueSlots(context_.spec, shard_.kv_heads, rows), builder_));
      }
    }
    if (context_.spec.pass == Pass::kBackward) AllocateGradientSlots(rows, blocks[0] + blocks[1]);
  }

  // Gradients on their way to owners, and gradients of own rows as they arrive.
  void AllocateGradientSlots(int64_t rows, int blocks) {
    for (int i = 0; i < std::min(2, blocks); ++i) {
      leaving_.push_back(AddSlots(KeyValueGradientSlots(context_.spec, shard_.kv_heads, rows), builder_));
    }
    int64_t most = 0;
    int readers = 0;
    for (int s = 0; s < context_.sequence_ranks; ++s) {
      if (s == shard_.sequence_rank || !context_.Needs(s, shard_.sequence_rank)) continue;
      most = std::max(most, context_.NeededRows(s, shard_.sequence_rank).size());
      ++readers;
    }
    for (int i = 0; i < std::min(2, readers); ++i) {
      arriving_.push_back(AddSlots(KeyValueGradientSlots(context_.spec, shard_.kv_heads, most), builder_));
    }
  }

  Block OwnBlock() const {
    const int64_t rows = context_.key_layout.rows(shard_.sequence_rank);
    return {IntervalSet({0, rows}), false, shard_.key, shard_.value};
  }

  Region RowsIn(const Block& block, SlotId slot, Range rows) const {
    const int64_t first = block.packed ? block.rows.CountBefore(rows.begin) : rows.begin;
    return {slot, {first, first + rows.size()}, shard_.kv_heads};
  }
  void SendRows(const Block& block, const IntervalSet& rows, int reader) {
    for (SlotId slot : {block.key, block.value}) {
      for (const Range& range : rows.ranges()) builder_.Send(WorldRank(reader), RowsIn(block, slot, range));
    }
  }
  void ReceiveRows(const Block& block, const IntervalSet& rows, int sender) {
    for (SlotId slot : {block.key, block.value}) {
      for (const Range& range : rows.ranges()) builder_.Receive(WorldRank(sender), RowsIn(block, slot, range));
    }
  }

  Block ReceiveBlock(int owner, Position position) {
    Block block{context_.NeededRows(shard_.sequence_rank, owner)};
    const int level = position.inner > 0 ? 0 : 1;
    const std::vector<SlotId>& slots = slots_[level][received_[level]++ % slots_[level].size()];
    block.key = slots[0];
    block.value = slots[1];
    const int predecessor = Predecessor(shard_.sequence_rank, position);
    if (predecessor == owner) {
      ReceiveRows(block, block.rows, owner);
    } else {
      const IntervalSet held = context_.NeededRows(predecessor, owner);
      ReceiveRows(block, block.rows.Intersection(held), predecessor);
      ReceiveRows(block, block.rows.Difference(held), owner);
    }
    return block;
  }

  // To the next rank of the node and, from the first position in a node, to the next node.
  void ForwardBlock(const Block& block, int owner, Position p) {
    const auto forward = [&](int reader) {
      if (reader != owner) SendRows(block, block.rows.Intersection(context_.NeededRows(reader, owner)), reader);
    };
    if (p.inner + 1 < mesh_.inner_ranks) forward(Shifted(shard_.sequence_rank, 0, 1));
    if (p.inner == 0 && p.outer + 1 < mesh_.outer_ranks) forward(Shifted(shard_.sequence_rank, 1, 0));
  }

  // Own rows for the reader that visits this rank at `p`, as far as its predecessor does not hold them.
  void SendFromOwner(Position p) {
    const int reader = ReaderAt(shard_.sequence_rank, p);
    const int predecessor = Predecessor(reader, p);
    if (!context_.Needs(reader, shard_.sequence_rank)) return;
    if (predecessor == shard_.sequence_rank) return;  // it holds everything: see ForwardBlock at position 0
    const IntervalSet needed = context_.NeededRows(reader, shard_.sequence_rank);
    SendRows(OwnBlock(), needed.Difference(context_.NeededRows(predecessor, shard_.sequence_rank)), reader);
  }

  void AttendBlock(const Block& block, int owner) {
    const IntervalSet rows =
        block.packed ? block.rows : context_.NeededRows(shard_.sequence_rank, shard_.sequence_rank);
    const auto keys = context_.key_layout.segments(owner);
    const auto queries = context_.query_layout.segments(shard_.sequence_rank);
    const IntervalSet query_rows({0, context_.query_layout.rows(shard_.sequence_rank)});
    std::vector<Tile> tiles;
    AppendTiles(context_.index, InPlace(queries, query_rows), block.packed ? Packed(keys, rows) : InPlace(keys, rows),
                tiles);
    const Pass pass = context_.spec.pass;
    if (pass == Pass::kForward || !block.packed) {
      EmitAttend(pass, shard_, block.key, block.value, shard_.key_gradient, shard_.value_gradient, std::move(tiles),
                 builder_);
      return;
    }
    // The gradients of a visiting block go straight to its owner, packed like the block.
    const std::vector<SlotId>& gradients = leaving_[left_++ % leaving_.size()];
    const Range all{0, rows.size()};
    EmitClear(pass, gradients, all, builder_);
    EmitAttend(pass, shard_, block.key, block.value, gradients[0], gradients[1], std::move(tiles), builder_);
    for (SlotId slot : gradients) builder_.Send(WorldRank(owner), {slot, all, shard_.kv_heads}, Channel::kPartial);
  }

  // Adds the gradients of own rows from the reader that visits this rank at `p`. Emitted one position late, so that
  // this rank attends its next block while the reader finishes.
  void CollectGradients(Position p) {
    if (context_.spec.pass == Pass::kForward) return;
    const int reader = ReaderAt(shard_.sequence_rank, p);
    if (!context_.Needs(reader, shard_.sequence_rank)) return;
    const IntervalSet rows = context_.NeededRows(reader, shard_.sequence_rank);
    const std::vector<SlotId>& slots = arriving_[arrived_++ % arriving_.size()];
    for (SlotId slot : slots) {
      builder_.Receive(WorldRank(reader), {slot, {0, rows.size()}, shard_.kv_heads}, Channel::kPartial);
    }
    std::vector<MergeRows> runs;
    for (const Range& r : rows.ranges()) runs.push_back({rows.CountBefore(r.begin), r.begin, r.size()});
    EmitCombine(Pass::kBackward, slots, {shard_.key_gradient, shard_.value_gradient}, std::move(runs), builder_);
  }

  const PlannerContext& context_;
  const Shard& shard_;
  ProgramBuilder& builder_;
  const Mesh& mesh_;
  std::array<std::vector<std::vector<SlotId>>, 2> slots_;  // key and value, per level
  std::vector<std::vector<SlotId>> leaving_, arriving_;    // key and value gradients
  size_t left_ = 0;
  size_t arrived_ = 0;
  std::array<size_t, 2> received_ = {0, 0};
};

}  // namespace

void EmitRing(const PlannerContext& context, const Shard& shard, ProgramBuilder& builder) {
  Ring(context, shard, builder).Emit();
}

}  // namespace tessera
