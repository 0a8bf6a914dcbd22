#include "partition/message_rounds.h"

#include <algorithm>

#include "partition/verify_internal.h"

namespace tessera {
namespace {

StatusOr<std::vector<std::vector<int>>> RoundsOf(const verify::PlanView& view) {
  const verify::StepIndex index(view);
  TESSERA_ASSIGN_OR_RETURN(const verify::Meetings meetings, verify::MatchMessages(view, index));
  TESSERA_ASSIGN_OR_RETURN(const std::vector<int> order, verify::OrderMeetings(view, index, meetings));

  std::vector<std::vector<int>> rounds;
  for (const RankProgram& program : view.programs) rounds.emplace_back(program.steps.size(), kNone);
  // The first round that may depend on a step: one after its own, or for compute steps on what they waited for. The
  // order is one in which meetings complete, so what a step waits for comes before it.
  std::vector<int> open_after(index.size(), 0);
  std::vector<int> compute_open_after(view.programs.size(), 0);  // of a rank's last compute step so far
  for (const int meeting : order) {
    int round = 0;
    for (const int64_t participant : meetings.of(meeting)) {
      const verify::StepRef ref = index.at(participant);
      const Step& step = view.programs[ref.rank].steps[ref.step];
      for (const StepId before : step.after) round = std::max(round, open_after[index.of(ref.rank, before)]);
      if (IsCompute(step.body)) round = std::max(round, compute_open_after[ref.rank]);
    }
    for (const int64_t participant : meetings.of(meeting)) {
      const verify::StepRef ref = index.at(participant);
      if (IsCompute(verify::BodyOf(view, ref))) {
        open_after[participant] = compute_open_after[ref.rank] = round;
        continue;
      }
      rounds[ref.rank][ref.step] = round;
      open_after[participant] = round + 1;
    }
  }
  return rounds;
}

}  // namespace

StatusOr<std::vector<std::vector<int>>> MessageRounds(const Plan& plan) {
  return RoundsOf(verify::PlanView(plan));
}

StatusOr<std::vector<std::vector<int>>> MessageRounds(const DecodePlan& plan) {
  return RoundsOf(verify::PlanView(plan));
}

}  // namespace tessera
