// A plan is data: for each rank a list of steps with explicit dependencies over a table of buffer slots. Every strategy
// is a planner that emits these few step kinds; verify, price, draw and the executor understand nothing else.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "partition/layout.h"
#include "partition/mesh.h"
#include "partition/problem.h"
#include "runtime/base/dtype.h"
#include "runtime/base/geometry.h"
#include "runtime/base/status.h"

namespace tessera {

// What a slot holds. kPartial* are accumulators, fp32 (fp64 for fp64 problems): (O, LSE) is the monoid element of
// docs/numerics.md, gradients are plain sums. kResult, kResultLse and the k*Gradient without Partial are what the
// caller sees, rounded once.
enum class SlotContent : uint8_t {
  kQuery,
  kKey,
  kValue,
  kPartialOutput,
  kPartialLse,
  kResult,
  kResultLse,
  kStaging,
  kOutputGradient,
  kDelta,  // sum over the width of output * output gradient, an accumulator too: see kernels/attention_backward.h
  kPartialQueryGradient,
  kPartialKeyGradient,
  kPartialValueGradient,
  kQueryGradient,
  kKeyGradient,
  kValueGradient
};
std::string_view Name(SlotContent content);

// A dense buffer [rows, heads, width] of one rank. External slots are the caller's tensors and cost no memory; kStaging
// slots are raw bytes (rows = bytes, heads = width = 1).
struct Slot {
  SlotContent content = SlotContent::kQuery;
  bool external = false;
  int64_t rows = 0;
  HeadRange heads;  // global heads: query heads for Q/O/LSE, key/value heads for K/V
  int width = 0;
  int element_bytes = 4;
  int64_t bytes() const { return rows * heads.size() * width * element_bytes; }
  friend bool operator==(const Slot&, const Slot&) = default;
};

using SlotId = int;
using StepId = int;
inline constexpr int kNone = -1;

// Rows [rows) of heads [heads) (global head numbers) of a slot.
struct Region {
  SlotId slot = kNone;
  Range rows;
  HeadRange heads;
  friend bool operator==(const Region&, const Region&) = default;
};

// Point to point. The region spans all heads of its slot, so it is contiguous in memory. `tag` pairs a send with its
// receive: unique per (sender, receiver).
struct SendStep {
  int peer = 0;
  int tag = 0;
  Region region;
  friend bool operator==(const SendStep&, const SendStep&) = default;
};
struct ReceiveStep {
  int peer = 0;
  int tag = 0;
  Region region;
  friend bool operator==(const ReceiveStep&, const ReceiveStep&) = default;
};

// A collective all-to-all-v within groups[group]: regions to and from each member. Parts are packed in list order
// through the staging slots; kNone means that every peer's parts are one contiguous piece of one slot (or nothing), so
// that bytes move in place. A part to oneself is a local copy, is not staged and not counted as traffic.
struct ExchangePart {
  int peer = 0;  // world rank
  Region region;
  friend bool operator==(const ExchangePart&, const ExchangePart&) = default;
};
struct ExchangeStep {
  int group = 0;
  std::vector<ExchangePart> sends;     // ascending by position of the peer in the group
  std::vector<ExchangePart> receives;  // likewise
  SlotId send_staging = kNone;
  SlotId receive_staging = kNone;
  friend bool operator==(const ExchangeStep&, const ExchangeStep&) = default;
};

// Folds attention of query rows over key/value rows into partial slots. Row numbers of tiles are rows of the slots; the
// partial slots have the same rows as the query slot.
struct AttendStep {
  SlotId query = kNone;
  SlotId key = kNone;
  SlotId value = kNone;
  SlotId partial_output = kNone;
  SlotId partial_lse = kNone;
  HeadRange heads;  // query heads
  std::vector<Tile> tiles;
  friend bool operator==(const AttendStep&, const AttendStep&) = default;
};

// Sets rows of partial slots to the identity (O = 0, LSE = -inf).
struct ClearStep {
  SlotId partial_output = kNone;
  SlotId partial_lse = kNone;
  Range rows;
  friend bool operator==(const ClearStep&, const ClearStep&) = default;
};

// destination += source, row by row, for runs of rows.
struct MergeRows {
  int64_t source_row = 0;
  int64_t destination_row = 0;
  int64_t count = 0;
  friend bool operator==(const MergeRows&, const MergeRows&) = default;
};
struct MergeStep {
  SlotId source_output = kNone;
  SlotId source_lse = kNone;
  SlotId output = kNone;
  SlotId lse = kNone;
  std::vector<MergeRows> rows;
  friend bool operator==(const MergeStep&, const MergeStep&) = default;
};

// Adds the sink and rounds partials (all rows) to the result slots.
struct FinishStep {
  SlotId partial_output = kNone;
  SlotId partial_lse = kNone;
  SlotId result = kNone;
  SlotId result_lse = kNone;
  friend bool operator==(const FinishStep&, const FinishStep&) = default;
};

// The steps of the backward pass.

// delta = row sums of output * output_gradient, for all rows and heads of the slots.
struct DeltaStep {
  SlotId output = kNone;
  SlotId output_gradient = kNone;
  SlotId delta = kNone;
  friend bool operator==(const DeltaStep&, const DeltaStep&) = default;
};

// Adds the gradients of query rows against key/value rows to three accumulator slots. The slots of output_gradient,
// lse, delta and query_gradient have the rows of the query slot, those of key_gradient and value_gradient the rows of
// the key slot.
struct AttendBackwardStep {
  SlotId query = kNone;
  SlotId key = kNone;
  SlotId value = kNone;
  SlotId output_gradient = kNone;
  SlotId lse = kNone;
  SlotId delta = kNone;
  SlotId query_gradient = kNone;
  SlotId key_gradient = kNone;
  SlotId value_gradient = kNone;
  HeadRange heads;  // query heads
  std::vector<Tile> tiles;
  friend bool operator==(const AttendBackwardStep&, const AttendBackwardStep&) = default;
};

// Sets rows of a gradient slot to zero.
struct ZeroStep {
  SlotId slot = kNone;
  Range rows;
  friend bool operator==(const ZeroStep&, const ZeroStep&) = default;
};

// destination += source for runs of rows and all heads of the source, which the destination has too (and maybe more).
struct AddStep {
  SlotId source = kNone;
  SlotId destination = kNone;
  std::vector<MergeRows> rows;
  friend bool operator==(const AddStep&, const AddStep&) = default;
};

// Rounds an accumulated gradient slot (all rows and heads) to the caller's dtype.
struct RoundStep {
  SlotId source = kNone;
  SlotId destination = kNone;
  friend bool operator==(const RoundStep&, const RoundStep&) = default;
};

// The step of decoding.

// Attends all query rows to the rank's own part of a paged cache, which lies outside the slots, and overwrites partial
// slots that have the rows of the query slot.
struct AttendCacheStep {
  SlotId query = kNone;
  SlotId partial_output = kNone;
  SlotId partial_lse = kNone;
  HeadRange heads;  // query heads: all of the three slots
  friend bool operator==(const AttendCacheStep&, const AttendCacheStep&) = default;
};

using StepBody = std::variant<SendStep, ReceiveStep, ExchangeStep, AttendStep, ClearStep, MergeStep, FinishStep,
                              DeltaStep, AttendBackwardStep, ZeroStep, AddStep, RoundStep, AttendCacheStep>;

// A step may start when its dependencies are complete. Compute steps (attend, clear, merge, finish, ...) of a rank run
// one at a time in program order; exchanges start in program order; sends and receives may overlap anything.
struct Step {
  StepBody body;
  std::vector<StepId> after;  // earlier steps of the same rank
  friend bool operator==(const Step&, const Step&) = default;
};
std::string_view KindName(const StepBody& body);
bool IsCompute(const StepBody& body);

// The first slots of every program are the caller's tensors, in this order. The forward pass has five; the backward
// pass reads what the forward pass wrote and has four more.
enum ExternalSlot : SlotId {
  kQuerySlot = 0,
  kKeySlot,
  kValueSlot,
  kResultSlot,
  kResultLseSlot,
  kExternalSlots,
  kOutputGradientSlot = kExternalSlots,
  kQueryGradientSlot,
  kKeyGradientSlot,
  kValueGradientSlot,
  kBackwardExternalSlots,
  kOwnDeltaSlot = kBackwardExternalSlots  // the first internal slot of a backward program: delta of the rank's own rows
};
// Those of a decode program: output and log-sum-exp are fp32, so partials are merged where the caller wants them.
enum DecodeExternalSlot : SlotId { kDecodeQuerySlot = 0, kDecodeOutputSlot, kDecodeLseSlot, kDecodeExternalSlots };

struct RankProgram {
  int rank = 0;
  std::vector<Slot> slots;
  std::vector<Step> steps;
  std::vector<std::vector<int>> groups;  // world ranks of each exchange group this rank belongs to
  int64_t SlotBytes() const;             // memory the executor allocates for this rank
  friend bool operator==(const RankProgram&, const RankProgram&) = default;
};

// How K/V or partial results meet on the sequence axis.
enum class SequenceMethod : uint8_t { kRing, kAllGather, kTree };

enum class Pass : uint8_t { kForward, kBackward };

// The few numbers that determine a plan completely.
struct PlanSpec {
  Pass pass = Pass::kForward;
  Problem problem;
  Mesh mesh;
  SequenceMethod method = SequenceMethod::kRing;
  std::string strategy;  // as the user named it: "zigzag", "grid:2x4", ...
  // Ownership over all mesh.size() ranks, before the head exchange.
  Layout query_layout;
  Layout key_layout;
  friend bool operator==(const PlanSpec&, const PlanSpec&) = default;
};

// A plan for every rank. Pure value.
struct Plan {
  PlanSpec spec;
  std::vector<RankProgram> programs;  // one per rank
  friend bool operator==(const Plan&, const Plan&) = default;
};

// Stable 64-bit digest of everything that determines the plan; equal on ranks that agree.
uint64_t Hash(const Problem& problem);
uint64_t Hash(const PlanSpec& spec);

}  // namespace tessera
