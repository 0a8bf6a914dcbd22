#include "partition/verify.h"

#include "partition/verify_internal.h"

namespace tessera {
namespace verify {

StepIndex::StepIndex(const Plan& plan) {
  for (const RankProgram& program : plan.programs) {
    first_.push_back(size());
    for (StepId step = 0; step < static_cast<int>(program.steps.size()); ++step) refs_.push_back({program.rank, step});
  }
}

std::string Where(const RankProgram& program, StepId step) {
  return absl::StrCat("rank ", program.rank, " step ", step, " (", std::string(KindName(program.steps[step].body)),
                      ")");
}
std::string Where(const Plan& plan, StepRef ref) {
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

HeadRange KeyHeadsOf(const Problem& problem, HeadRange heads) {
  if (heads.empty()) return {};
  return {heads.begin / problem.group(), (heads.end - 1) / problem.group() + 1};
}

}  // namespace verify

Status Verify(const Plan& plan) {
  TESSERA_RETURN_IF_ERROR(verify::CheckStructure(plan));
  const verify::StepIndex index(plan);
  TESSERA_ASSIGN_OR_RETURN(const verify::Meetings meetings, verify::MatchMessages(plan, index));
  TESSERA_ASSIGN_OR_RETURN(const std::vector<int> order, verify::OrderMeetings(plan, index, meetings));
  TESSERA_RETURN_IF_ERROR(verify::CheckLifetimes(plan));
  TESSERA_ASSIGN_OR_RETURN(const verify::Outcome outcome, verify::ExecuteSymbolically(plan, index, meetings, order));
  const BandIndex mask(plan.spec.problem.mask);
  TESSERA_RETURN_IF_ERROR(verify::CheckCoverage(plan, mask, outcome));
  return verify::CheckTilesUnmasked(plan, mask);
}

}  // namespace tessera
