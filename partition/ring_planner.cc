// Ring attention (Liu et al. 2023) on one or two levels, sending exactly the rows that are attended.
//
// Sequence rank (n, l) of N nodes x L local ranks visits owner (n - o, l - i) at position o * L + i. Rows reach it from
// the rank that held them one hop earlier: (n, l - 1) within a node, (n - 1, l) between nodes. Rows which that rank
// does not attend itself are fetched from their owner instead, so no rank ever receives a row it does not use.
//
// Why this cannot deadlock under rendezvous: a receive at position T waits for a slot whose block was received two
// blocks earlier and whose forwards are received at positions at most one later (within a node) or by the next node's
// first position (between nodes, which has slots of its own). Every wait leads to a smaller position.
#include <array>

#include "partition/planner_context.h"

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
    }
  }

 private:
  // Rows of an owner's shard present at this rank, packed from row 0 of the slots or in place.
  struct Block {
    IntervalSet rows;
    bool packed = true;
    SlotId key = kNone;
    SlotId value = kNone;
  };
  struct SlotPair {
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
    const Problem& problem = context_.spec.problem;
    for (int level = 0; level < 2; ++level) {
      const int64_t rows = level == 0 ? inner_rows : outer_rows;
      for (int i = 0; i < std::min(2, blocks[level]); ++i) {
        slots_[level].push_back({builder_.AddSlot(KeySlotOf(problem, shard_.kv_heads, rows)),
                                 builder_.AddSlot(ValueSlotOf(problem, shard_.kv_heads, rows))});
      }
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
    const SlotPair& slots = slots_[level][received_[level]++ % slots_[level].size()];
    block.key = slots.key;
    block.value = slots.value;
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
    EmitAttend(shard_, block.key, block.value, std::move(tiles), builder_);
  }

  const PlannerContext& context_;
  const Shard& shard_;
  ProgramBuilder& builder_;
  const Mesh& mesh_;
  std::array<std::vector<SlotPair>, 2> slots_;
  std::array<size_t, 2> received_ = {0, 0};
};

}  // namespace

void EmitRing(const PlannerContext& context, const Shard& shard, ProgramBuilder& builder) {
  Ring(context, shard, builder).Emit();
}

}  // namespace tessera
