// What differs between the forward and the backward pass, so that the planners of the sequence axis need not know:
// which tensors stand on the query side, what is accumulated, and which steps attend, clear and combine. Internal to
// partition.
#pragma once

#include <vector>

#include "partition/planner_context.h"

namespace tessera {

// One rank's view of its shard: where the tensors live and which heads it serves.
struct Shard {
  int sequence_rank = 0;
  int head_rank = 0;
  HeadRange query_heads;
  HeadRange kv_heads;
  std::vector<SlotId> query_side;  // forward: query; backward: query, output gradient, LSE, delta
  std::vector<SlotId> partials;    // forward: O, LSE; backward: query gradient
  SlotId key = kNone;
  SlotId value = kNone;
  SlotId key_gradient = kNone;  // backward only
  SlotId value_gradient = kNone;
};

// The slots of the query side, of the partials, and fp32 gradients of key and value.
std::vector<Slot> QuerySideSlots(const PlanSpec& spec, HeadRange heads, int64_t rows);
std::vector<Slot> PartialSlots(const PlanSpec& spec, HeadRange heads, int64_t rows);
std::vector<Slot> KeyValueSlots(const PlanSpec& spec, HeadRange kv_heads, int64_t rows);
std::vector<Slot> KeyValueGradientSlots(const PlanSpec& spec, HeadRange kv_heads, int64_t rows);
std::vector<SlotId> AddSlots(const std::vector<Slot>& slots, ProgramBuilder& builder);

// Attends `tiles`, if there are any, from the shard's query side into its partials and, in the backward pass, into the
// given gradients of the rows of `key` and `value`.
void EmitAttend(Pass pass, const Shard& shard, SlotId key, SlotId value, SlotId key_gradient, SlotId value_gradient,
                std::vector<Tile> tiles, ProgramBuilder& builder);
// Sets rows of partials to the identity.
void EmitClear(Pass pass, const std::vector<SlotId>& partials, Range rows, ProgramBuilder& builder);
// destination += source.
void EmitCombine(Pass pass, const std::vector<SlotId>& sources, const std::vector<SlotId>& destinations,
                 std::vector<MergeRows> rows, ProgramBuilder& builder);

// The methods of the sequence axis: fold all keys into the shard's partials, and return key and value gradients.
void EmitRing(const PlannerContext& context, const Shard& shard, ProgramBuilder& builder);
void EmitAllGather(const PlannerContext& context, const Shard& shard, int group, ProgramBuilder& builder);
void EmitTree(const PlannerContext& context, const Shard& shard, ProgramBuilder& builder);

}  // namespace tessera
