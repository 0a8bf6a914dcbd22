// From a spec to programs: the head exchange around one method of the sequence axis, forward and backward.
#include "partition/planner.h"

#include "partition/head_exchange.h"
#include "partition/shard.h"

namespace tessera {
namespace {

class RankPlanner {
 public:
  RankPlanner(const PlannerContext& context, int rank)
      : context_(context), spec_(context.spec), rank_(rank), builder_(rank) {
    const Mesh& mesh = spec_.mesh;
    shard_.sequence_rank = mesh.sequence_of(rank);
    shard_.head_rank = mesh.head_of(rank);
    shard_.query_heads = QueryHeadsOf(spec_.problem, mesh, shard_.head_rank);
    shard_.kv_heads = KvHeadsOf(spec_.problem, shard_.query_heads);
    shard_queries_ = context.query_layout.rows(shard_.sequence_rank);
    shard_keys_ = context.key_layout.rows(shard_.sequence_rank);
    IntervalSet asked;  // keys that no query attends stay where they are
    for (const IntervalSet& keys : context.needed_keys) asked = asked.Union(keys);
    exchanged_keys_ = context.key_layout.RowsOf(shard_.sequence_rank, asked);
    AddExternalSlots();
    AddGroups();
  }

  RankProgram Plan() {
    std::vector<SlotId> own_query_side = {kQuerySlot};
    if (spec_.pass == Pass::kBackward) {
      Slot delta = builder_.slot(kResultLseSlot);
      delta.content = SlotContent::kDelta;
      delta.external = false;
      own_query_side = {kQuerySlot, kOutputGradientSlot, kResultLseSlot, builder_.AddSlot(delta)};
      if (delta.rows > 0) builder_.Add(DeltaStep{kResultSlot, kOutputGradientSlot, own_query_side.back()});
    }
    BringShard(own_query_side);
    if (!shard_.query_heads.empty()) {
      shard_.partials = AddSlots(PartialSlots(spec_, shard_.query_heads, shard_queries_), builder_);
      EmitClear(spec_.pass, shard_.partials, {0, shard_queries_}, builder_);
      if (spec_.pass == Pass::kBackward) AddKeyGradients();
      EmitMethod();
    }
    spec_.pass == Pass::kForward ? ReturnResult() : ReturnGradients();
    return builder_.Take();
  }

 private:
  bool exchanges_heads() const { return spec_.mesh.head_ranks > 1; }
  HeadExchange Queries() const { return {context_, rank_, head_group_, spec_.query_layout, false}; }
  HeadExchange Keys() const { return {context_, rank_, head_group_, spec_.key_layout, true}; }
  IntervalSet AllQueryRows() const { return IntervalSet({0, shard_queries_}); }
  int element_bytes() const { return static_cast<int>(SizeInBytes(spec_.problem.dtype)); }
  int accumulator_bytes() const { return static_cast<int>(SizeInBytes(AccumulatorType(spec_.problem.dtype))); }

  void AddExternalSlots() {
    const Problem& p = spec_.problem;
    const HeadRange heads{0, p.query_heads};
    const HeadRange kv{0, p.kv_heads};
    const int64_t queries = spec_.query_layout.rows(rank_);
    const int64_t keys = spec_.key_layout.rows(rank_);
    const int e = element_bytes();
    builder_.AddSlot({SlotContent::kQuery, true, queries, heads, p.qk_width, e});
    builder_.AddSlot({SlotContent::kKey, true, keys, kv, p.qk_width, e});
    builder_.AddSlot({SlotContent::kValue, true, keys, kv, p.v_width, e});
    builder_.AddSlot({SlotContent::kResult, true, queries, heads, p.v_width, e});
    builder_.AddSlot({SlotContent::kResultLse, true, queries, heads, 1, accumulator_bytes()});
    if (spec_.pass == Pass::kForward) return;
    builder_.AddSlot({SlotContent::kOutputGradient, true, queries, heads, p.v_width, e});
    builder_.AddSlot({SlotContent::kQueryGradient, true, queries, heads, p.qk_width, e});
    builder_.AddSlot({SlotContent::kKeyGradient, true, keys, kv, p.qk_width, e});
    builder_.AddSlot({SlotContent::kValueGradient, true, keys, kv, p.v_width, e});
  }

  void AddGroups() {
    const Mesh& mesh = spec_.mesh;
    if (exchanges_heads()) {
      std::vector<int> members(mesh.head_ranks);
      for (int h = 0; h < mesh.head_ranks; ++h) members[h] = mesh.rank_of(shard_.sequence_rank, h);
      head_group_ = builder_.AddGroup(std::move(members));
    }
    if (spec_.method == SequenceMethod::kAllGather && mesh.sequence_ranks() > 1) {
      std::vector<int> members(mesh.sequence_ranks());
      for (int s = 0; s < mesh.sequence_ranks(); ++s) members[s] = mesh.rank_of(s, shard_.head_rank);
      sequence_group_ = builder_.AddGroup(std::move(members));
    }
  }

  // Without a head axis the shard is what the caller gave.
  void BringShard(const std::vector<SlotId>& own_query_side) {
    shard_.query_side = own_query_side;
    shard_.key = kKeySlot;
    shard_.value = kValueSlot;
    if (!exchanges_heads()) return;
    shard_.query_side = AddSlots(QuerySideSlots(spec_, shard_.query_heads, shard_queries_), builder_);
    const std::vector<SlotId> kv = AddSlots(KeyValueSlots(spec_, shard_.kv_heads, shard_keys_), builder_);
    shard_.key = kv[0];
    shard_.value = kv[1];
    for (size_t i = 0; i < own_query_side.size(); ++i) {
      Queries().ToShard(own_query_side[i], shard_.query_side[i], AllQueryRows(), builder_);
    }
    Keys().ToShard(kKeySlot, shard_.key, exchanged_keys_, builder_);
    Keys().ToShard(kValueSlot, shard_.value, exchanged_keys_, builder_);
  }

  void AddKeyGradients() {
    const auto gradients = AddSlots(KeyValueGradientSlots(spec_, shard_.kv_heads, shard_keys_), builder_);
    EmitClear(Pass::kBackward, gradients, {0, shard_keys_}, builder_);
    shard_.key_gradient = gradients[0];
    shard_.value_gradient = gradients[1];
  }

  void EmitMethod() {
    switch (spec_.method) {
      case SequenceMethod::kRing:
        return EmitRing(context_, shard_, builder_);
      case SequenceMethod::kAllGather:
        return EmitAllGather(context_, shard_, sequence_group_, builder_);
      case SequenceMethod::kTree:
        return EmitTree(context_, shard_, builder_);
    }
  }

  // The result is rounded where it is complete, before it travels.
  void ReturnResult() {
    SlotId result = kResultSlot;
    SlotId lse = kResultLseSlot;
    if (!shard_.query_heads.empty()) {
      if (exchanges_heads()) {
        result = builder_.AddSlot(
            {SlotContent::kResult, false, shard_queries_, shard_.query_heads, spec_.problem.v_width, element_bytes()});
        lse = builder_.AddSlot(
            {SlotContent::kResultLse, false, shard_queries_, shard_.query_heads, 1, accumulator_bytes()});
      }
      if (shard_queries_ > 0) builder_.Add(FinishStep{shard_.partials[0], shard_.partials[1], result, lse});
    }
    if (!exchanges_heads()) return;
    Queries().ToOwners(result, kResultSlot, AllQueryRows(), builder_);
    Queries().ToOwners(lse, kResultLseSlot, AllQueryRows(), builder_);
  }

  // Query gradients are complete on the shard. Key and value gradients are complete only at the owner, because head
  // ranks may share a key/value head: they travel unrounded.
  void ReturnGradients() {
    SlotId query_gradient = kQueryGradientSlot;
    if (!shard_.query_heads.empty()) {
      if (exchanges_heads()) {
        query_gradient = builder_.AddSlot({SlotContent::kQueryGradient, false, shard_queries_, shard_.query_heads,
                                           spec_.problem.qk_width, element_bytes()});
      }
      if (shard_queries_ > 0) builder_.Add(RoundStep{shard_.partials[0], query_gradient});
    }
    std::vector<SlotId> sums = {shard_.key_gradient, shard_.value_gradient};
    const int64_t keys = spec_.key_layout.rows(rank_);
    if (exchanges_heads()) {
      Queries().ToOwners(query_gradient, kQueryGradientSlot, AllQueryRows(), builder_);
      sums = AddSlots(KeyValueGradientSlots(spec_, {0, spec_.problem.kv_heads}, keys), builder_);
      EmitClear(Pass::kBackward, sums, {0, keys}, builder_);
      Keys().SumAtOwners(shard_.key_gradient, sums[0], exchanged_keys_, builder_);
      Keys().SumAtOwners(shard_.value_gradient, sums[1], exchanged_keys_, builder_);
    }
    if (keys == 0) return;
    builder_.Add(RoundStep{sums[0], kKeyGradientSlot});
    builder_.Add(RoundStep{sums[1], kValueGradientSlot});
  }

  const PlannerContext& context_;
  const PlanSpec& spec_;
  const int rank_;
  ProgramBuilder builder_;
  Shard shard_;
  int64_t shard_queries_ = 0;
  int64_t shard_keys_ = 0;
  IntervalSet exchanged_keys_;
  int head_group_ = kNone;
  int sequence_group_ = kNone;
};

}  // namespace

RankProgram BuildRankProgram(const PlanSpec& spec, int rank) {
  const PlannerContext context(spec);
  return RankPlanner(context, rank).Plan();
}

Plan BuildPlan(const PlanSpec& spec) {
  Plan plan;
  plan.spec = spec;
  const PlannerContext context(plan.spec);
  for (int rank = 0; rank < spec.mesh.size(); ++rank) plan.programs.push_back(RankPlanner(context, rank).Plan());
  return plan;
}

}  // namespace tessera
