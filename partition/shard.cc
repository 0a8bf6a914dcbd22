#include "partition/shard.h"

namespace tessera {
namespace {

int ElementBytes(const PlanSpec& spec) {
  return static_cast<int>(SizeInBytes(spec.problem.dtype));
}
int AccumulatorBytes(const PlanSpec& spec) {
  return static_cast<int>(SizeInBytes(AccumulatorType(spec.problem.dtype)));
}

}  // namespace

std::vector<Slot> QuerySideSlots(const PlanSpec& spec, HeadRange heads, int64_t rows) {
  const Problem& p = spec.problem;
  std::vector<Slot> slots = {{SlotContent::kQuery, false, rows, heads, p.qk_width, ElementBytes(spec)}};
  if (spec.pass == Pass::kBackward) {
    slots.push_back({SlotContent::kOutputGradient, false, rows, heads, p.v_width, ElementBytes(spec)});
    slots.push_back({SlotContent::kResultLse, false, rows, heads, 1, AccumulatorBytes(spec)});
    slots.push_back({SlotContent::kDelta, false, rows, heads, 1, AccumulatorBytes(spec)});
  }
  return slots;
}

std::vector<Slot> PartialSlots(const PlanSpec& spec, HeadRange heads, int64_t rows) {
  const Problem& p = spec.problem;
  if (spec.pass == Pass::kBackward) {
    return {{SlotContent::kPartialQueryGradient, false, rows, heads, p.qk_width, AccumulatorBytes(spec)}};
  }
  return {{SlotContent::kPartialOutput, false, rows, heads, p.v_width, AccumulatorBytes(spec)},
          {SlotContent::kPartialLse, false, rows, heads, 1, AccumulatorBytes(spec)}};
}

std::vector<Slot> KeyValueSlots(const PlanSpec& spec, HeadRange kv_heads, int64_t rows) {
  return {{SlotContent::kKey, false, rows, kv_heads, spec.problem.qk_width, ElementBytes(spec)},
          {SlotContent::kValue, false, rows, kv_heads, spec.problem.v_width, ElementBytes(spec)}};
}

std::vector<Slot> KeyValueGradientSlots(const PlanSpec& spec, HeadRange kv_heads, int64_t rows) {
  return {{SlotContent::kPartialKeyGradient, false, rows, kv_heads, spec.problem.qk_width, AccumulatorBytes(spec)},
          {SlotContent::kPartialValueGradient, false, rows, kv_heads, spec.problem.v_width, AccumulatorBytes(spec)}};
}

std::vector<SlotId> AddSlots(const std::vector<Slot>& slots, ProgramBuilder& builder) {
  std::vector<SlotId> ids;
  for (const Slot& slot : slots) ids.push_back(builder.AddSlot(slot));
  return ids;
}

void EmitAttend(Pass pass, const Shard& shard, SlotId key, SlotId value, SlotId key_gradient, SlotId value_gradient,
                std::vector<Tile> tiles, ProgramBuilder& builder) {
  if (tiles.empty()) return;
  const std::vector<SlotId>& q = shard.query_side;
  if (pass == Pass::kForward) {
    builder.Add(
        AttendStep{q[0], key, value, shard.partials[0], shard.partials[1], shard.query_heads, std::move(tiles)});
  } else {
    builder.Add(AttendBackwardStep{q[0], key, value, q[1], q[2], q[3], shard.partials[0], key_gradient, value_gradient,
                                   shard.query_heads, std::move(tiles)});
  }
}

void EmitClear(Pass pass, const std::vector<SlotId>& partials, Range rows, ProgramBuilder& builder) {
  if (rows.empty()) return;
  if (pass == Pass::kForward) {
    builder.Add(ClearStep{partials[0], partials[1], rows});
  } else {
    for (SlotId slot : partials) builder.Add(ZeroStep{slot, rows});
  }
}

void EmitCombine(Pass pass, const std::vector<SlotId>& sources, const std::vector<SlotId>& destinations,
                 std::vector<MergeRows> rows, ProgramBuilder& builder) {
  if (pass == Pass::kForward) {
    builder.Add(MergeStep{sources[0], sources[1], destinations[0], destinations[1], std::move(rows)});
  } else {
    for (size_t i = 0; i < sources.size(); ++i) builder.Add(AddStep{sources[i], destinations[i], rows});
  }
}

}  // namespace tessera
