#include "partition/verify.h"

#include "partition/verify_internal.h"

namespace tessera {
namespace verify {

StepIndex::StepIndex(const PlanView& plan) {
  for (const RankProgram& program : plan.programs) {
    first_.push_back(size());
    for (StepId step = 0; step < static_cast<int>(program.steps.size()); ++step) refs_.push_back({program.rank, step});
  }
}

std::string Where(const RankProgram& program, StepId step) {
  return absl::StrCat("rank ", program.rank, " step ", step, " (", std::string(KindName(program.steps[step].body)),
                      ")");
}
std::string Where(const PlanView& plan, StepRef ref) {
  return Where(plan.programs[ref.rank], ref.step);
}
std::string Text(Range range) {
  return absl::StrCat("[", range.begin, ", ", range.end, ")");
}
std::string Text(HeadRange heads) {
  return absl::StrCat("[", heads.begin, ", ", heads.end, ")");
}
std::string Text(const Segment& segment) {
  if (segment.count == 1) return absl::StrCat(segment.begin);
  // Plans under suspicion hold any numbers: count and stride are printed, never multiplied.
  if (segment.stride == 1) return absl::StrCat(segment.begin, "+", segment.count);
  return absl::StrCat(segment.begin, "+", segment.count, "*", segment.stride);
}

int64_t BytesOf(const RankProgram& program, const Region& region) {
  const Slot& slot = program.slots[region.slot];
  return region.rows.size() * region.heads.size() * slot.width * slot.element_bytes;
}

namespace {

constexpr SlotContent kExternalContents[] = {
    SlotContent::kQuery,         SlotContent::kKey,         SlotContent::kValue,
    SlotContent::kResult,        SlotContent::kResultLse,   SlotContent::kOutputGradient,
    SlotContent::kQueryGradient, SlotContent::kKeyGradient, SlotContent::kValueGradient};
static_assert(std::size(kExternalContents) == kBackwardExternalSlots);

PlanView::External ExternalOf(const PlanSpec& spec, int rank, SlotId id) {
  const SlotContent content = kExternalContents[id];
  const bool keys = IsOnKeySide(content);
  const Layout& layout = keys ? spec.key_layout : spec.query_layout;
  const HeadRange heads{0, keys ? spec.problem.kv_heads : spec.problem.query_heads};
  const auto tokens = layout.segments(rank);
  return {
      {content, true, layout.rows(rank), heads, WidthOf(spec.problem, content), ElementBytesOf(spec.problem, content)},
      {tokens.begin(), tokens.end()}};
}

// Every rank's rows are the rows of the step.
PlanView::External ExternalOf(const DecodeSpec& spec, const Problem& problem, int rank, SlotId id) {
  constexpr SlotContent kContents[] = {SlotContent::kQuery, SlotContent::kPartialOutput, SlotContent::kPartialLse};
  static_assert(std::size(kContents) == kDecodeExternalSlots);
  const HeadRange heads = id == kDecodeQuerySlot ? spec.QueryHeads(rank) : spec.OutputHeads(rank);
  return {
      {kContents[id], true, spec.rows, heads, WidthOf(problem, kContents[id]), ElementBytesOf(problem, kContents[id])},
      {{0, spec.rows, 1}}};
}

}  // namespace

PlanView::PlanView(const Plan& plan)
    : kind(plan.spec.pass == Pass::kForward ? Kind::kForward : Kind::kBackward),
      programs(plan.programs),
      problem(plan.spec.problem),
      ranks(plan.spec.mesh.size()),
      externals(kind == Kind::kForward ? kExternalSlots : kBackwardExternalSlots),
      inputs(kind == Kind::kForward ? kResultSlot : kQueryGradientSlot),
      external([&spec = plan.spec](int rank, SlotId slot) { return ExternalOf(spec, rank, slot); }) {}

PlanView::PlanView(const DecodePlan& plan)
    : kind(Kind::kDecode),
      programs(plan.programs),
      ranks(plan.spec.ranks),
      externals(kDecodeExternalSlots),
      inputs(kDecodeOutputSlot) {
  const DecodeSpec& spec = plan.spec;
  problem.query_tokens = spec.rows;
  problem.key_tokens = spec.axis() == CacheAxis::kSequence ? spec.ranks : 1;
  problem.query_heads = spec.heads;
  problem.kv_heads = spec.kv_heads;
  problem.qk_width = spec.qk_width;
  problem.v_width = spec.v_width;
  problem.dtype = spec.dtype;
  problem.mask = *Mask::Full(problem.query_tokens, problem.key_tokens);  // of lengths that Validate() allows
  external = [&spec, this_problem = problem](int rank, SlotId slot) {
    return ExternalOf(spec, this_problem, rank, slot);
  };
}

bool IsOnKeySide(SlotContent content) {
  switch (content) {
    case SlotContent::kKey:
    case SlotContent::kValue:
    case SlotContent::kPartialKeyGradient:
    case SlotContent::kPartialValueGradient:
    case SlotContent::kKeyGradient:
    case SlotContent::kValueGradient:
      return true;
    default:
      return false;
  }
}

HeadRange KeyHeadsOf(const Problem& problem, HeadRange heads) {
  if (heads.empty()) return {};
  return {heads.begin / problem.group(), (heads.end - 1) / problem.group() + 1};
}

int WidthOf(const Problem& problem, SlotContent content) {
  switch (content) {
    case SlotContent::kQuery:
    case SlotContent::kKey:
    case SlotContent::kPartialQueryGradient:
    case SlotContent::kPartialKeyGradient:
    case SlotContent::kQueryGradient:
    case SlotContent::kKeyGradient:
      return problem.qk_width;
    case SlotContent::kValue:
    case SlotContent::kPartialOutput:
    case SlotContent::kResult:
    case SlotContent::kOutputGradient:
    case SlotContent::kPartialValueGradient:
    case SlotContent::kValueGradient:
      return problem.v_width;
    case SlotContent::kPartialLse:
    case SlotContent::kResultLse:
    case SlotContent::kStaging:
    case SlotContent::kDelta:
      return 1;
  }
  return 0;
}
int ElementBytesOf(const Problem& problem, SlotContent content) {
  switch (content) {
    case SlotContent::kPartialOutput:
    case SlotContent::kPartialLse:
    case SlotContent::kResultLse:
    case SlotContent::kDelta:
    case SlotContent::kPartialQueryGradient:
    case SlotContent::kPartialKeyGradient:
    case SlotContent::kPartialValueGradient:
      return static_cast<int>(SizeInBytes(AccumulatorType(problem.dtype)));
    case SlotContent::kStaging:
      return 1;
    default:
      return static_cast<int>(SizeInBytes(problem.dtype));
  }
}

namespace {

constexpr int kMaxRanks = 1 << 22;  // so that a message is named by 64 bits

Status CheckLayout(const Layout& layout, int ranks, int64_t tokens, const char* name) {
  if (layout.ranks() == ranks && layout.tokens() == tokens) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("structure: the ", name, " layout covers ", layout.tokens(),
                                                 " tokens on ", layout.ranks(), " ranks instead of ", tokens, " on ",
                                                 ranks));
}

}  // namespace

Status CheckSpec(const PlanSpec& spec) {
  TESSERA_RETURN_IF_ERROR(Validate(spec.problem));
  const auto axis_ok = [](int ranks) { return ranks >= 1 && ranks <= kMaxRanks; };
  const Mesh& mesh = spec.mesh;
  if (!axis_ok(mesh.head_ranks) || !axis_ok(mesh.inner_ranks) || !axis_ok(mesh.outer_ranks) ||
      int64_t{mesh.head_ranks} * mesh.inner_ranks > kMaxRanks || int64_t{mesh.sequence_ranks()} > kMaxRanks ||
      !axis_ok(mesh.size())) {
    return absl::InvalidArgumentError("structure: the mesh has an empty axis or too many ranks");
  }
  TESSERA_RETURN_IF_ERROR(CheckLayout(spec.query_layout, spec.mesh.size(), spec.problem.query_tokens, "query"));
  return CheckLayout(spec.key_layout, spec.mesh.size(), spec.problem.key_tokens, "key");
}

Status CheckStructure(const PlanView& plan) {
  if (static_cast<int>(plan.programs.size()) != plan.ranks) {
    return absl::InvalidArgumentError(
        absl::StrCat("structure: ", plan.programs.size(), " programs for ", plan.ranks, " ranks"));
  }
  for (int rank = 0; rank < plan.ranks; ++rank) {
    if (plan.programs[rank].rank != rank) {
      return absl::InvalidArgumentError(
          absl::StrCat("structure: program ", rank, " says it is for rank ", plan.programs[rank].rank));
    }
    TESSERA_RETURN_IF_ERROR(CheckProgram(plan, plan.programs[rank]));
  }
  return absl::OkStatus();
}

// The stages that are the same for every kind of plan.
Status CheckAll(const PlanView& plan) {
  TESSERA_RETURN_IF_ERROR(CheckStructure(plan));
  const StepIndex index(plan);
  TESSERA_ASSIGN_OR_RETURN(const Meetings meetings, MatchMessages(plan, index));
  TESSERA_ASSIGN_OR_RETURN(const std::vector<int> order, OrderMeetings(plan, index, meetings));
  TESSERA_RETURN_IF_ERROR(CheckLifetimes(plan));
  TESSERA_ASSIGN_OR_RETURN(const Outcome outcome, ExecuteSymbolically(plan, index, meetings, order));
  return CheckCoverage(plan, outcome);
}

}  // namespace verify

Status Verify(const Plan& plan) {
  TESSERA_RETURN_IF_ERROR(verify::CheckSpec(plan.spec));
  const verify::PlanView view(plan);
  TESSERA_RETURN_IF_ERROR(verify::CheckAll(view));
  return verify::CheckTilesUnmasked(view, BandIndex(plan.spec.problem.mask));
}

Status Verify(const DecodePlan& plan) {
  TESSERA_RETURN_IF_ERROR(Validate(plan.spec));
  return verify::CheckAll(verify::PlanView(plan));
}

}  // namespace tessera
