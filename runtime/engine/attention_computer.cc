#include "runtime/engine/attention_computer.h"

namespace tessera {

// What both passes tell a kernel about the problem.
template <typename AttendStepOfPass, typename Args>
void AttentionComputer::FillCommon(const AttendStepOfPass& step, const SlotTable& slots,
                                   const std::atomic<bool>& cancelled, Args& args) const {
  args.tiles = step.tiles;
  args.bands = problem_.mask.bands();
  args.first_query_head = slots.slot(step.query).heads.begin;
  args.first_kv_head = slots.slot(step.key).heads.begin;
  args.group = problem_.group();
  args.score.scale = problem_.EffectiveScale();
  args.score.soft_cap = problem_.score.soft_cap;
  if (problem_.score.alibi)
    args.score.alibi_slopes = vectors_.alibi_slopes.subspan(step.heads.begin, step.heads.size());
  args.score.position_offset = problem_.key_tokens - problem_.query_tokens;
  args.threads = threads_;
  args.cancelled = &cancelled;
}

Status AttentionComputer::Attend(const AttendStep& attend, const SlotTable& slots,
                                 const std::atomic<bool>& cancelled) const {
  AttendArgs args;
  args.query = slots.View(attend.query);
  args.key = slots.View(attend.key);
  args.value = slots.View(attend.value);
  args.output = slots.View(attend.partial_output);
  args.lse = slots.View(attend.partial_lse);
  FillCommon(attend, slots, cancelled, args);
  return kernel_.Attend(args);
}

Status AttentionComputer::AttendBackward(const AttendBackwardStep& attend, const SlotTable& slots,
                                         const std::atomic<bool>& cancelled) const {
  AttendBackwardArgs args;
  args.query = slots.View(attend.query);
  args.key = slots.View(attend.key);
  args.value = slots.View(attend.value);
  args.output_gradient = slots.View(attend.output_gradient);
  args.lse = slots.View(attend.lse);
  args.delta = slots.View(attend.delta);
  args.query_gradient = slots.View(attend.query_gradient);
  args.key_gradient = slots.View(attend.key_gradient);
  args.value_gradient = slots.View(attend.value_gradient);
  FillCommon(attend, slots, cancelled, args);
  return kernel_.AttendBackward(args);
}

void AttentionComputer::Finish(const FinishStep& finish, const SlotTable& slots) const {
  const HeadRange heads = slots.slot(finish.partial_output).heads;
  const std::span<const float> sinks =
      problem_.score.sink ? vectors_.sinks.subspan(heads.begin, heads.size()) : std::span<const float>();
  FinishPartials(slots.View(finish.partial_output), slots.View(finish.partial_lse), sinks, slots.View(finish.result),
                 slots.View(finish.result_lse), threads_);
}

Status AttentionComputer::Compute(const StepBody& body, const SlotTable& slots,
                                  const std::atomic<bool>& cancelled) const {
  if (const auto* attend = std::get_if<AttendStep>(&body)) return Attend(*attend, slots, cancelled);
  if (const auto* attend = std::get_if<AttendBackwardStep>(&body)) return AttendBackward(*attend, slots, cancelled);
  if (const auto* finish = std::get_if<FinishStep>(&body)) {
    Finish(*finish, slots);
    return absl::OkStatus();
  }
  if (const auto* delta = std::get_if<DeltaStep>(&body)) {
    ComputeDelta(slots.View(delta->output), slots.View(delta->output_gradient), slots.View(delta->delta), threads_);
    return absl::OkStatus();
  }
  return ComputeCommonStep(body, slots);
}

}  // namespace tessera
