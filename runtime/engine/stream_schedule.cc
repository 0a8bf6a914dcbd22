#include "runtime/engine/stream_schedule.h"

#include <algorithm>
#include <map>

namespace tessera {
namespace {

class Scheduler {
 public:
  Scheduler(const RankProgram& program, const std::vector<int>& rounds)
      : program_(program), rounds_(rounds), action_of_(program.steps.size(), kNone) {}

  StatusOr<std::vector<StreamAction>> Run() {
    std::map<int, std::vector<StepId>> messages;
    std::vector<StepId> compute;
    for (StepId id = 0; id < static_cast<StepId>(program_.steps.size()); ++id) {
      if (rounds_[id] == kNone) {
        compute.push_back(id);
      } else {
        messages[rounds_[id]].push_back(id);
      }
    }
    auto round = messages.begin();
    auto step = compute.begin();
    while (round != messages.end() || step != compute.end()) {
      if (round != messages.end() && Ready(round->second)) {
        Submit(true, std::move(round->second));
        ++round;
      } else if (step != compute.end() && Ready({*step})) {
        Submit(false, {*step});
        ++step;
      } else {
        return absl::InternalError(
            absl::StrFormat("rank %d: the rounds of its plan and its compute steps wait for "
                            "each other",
                            program_.rank));
      }
    }
    return std::move(actions_);
  }

 private:
  // Steps of one round never wait for each other.
  bool Ready(const std::vector<StepId>& steps) const {
    return std::ranges::all_of(steps, [&](StepId id) {
      return std::ranges::all_of(program_.steps[id].after, [&](StepId before) { return action_of_[before] != kNone; });
    });
  }

  void Submit(bool communicates, std::vector<StepId> steps) {
    StreamAction action;
    action.communicates = communicates;
    for (const StepId id : steps) {
      for (const StepId before : program_.steps[id].after) {
        const int other = action_of_[before];
        if (actions_[other].communicates != communicates) action.wait_for = std::max(action.wait_for, other);
      }
    }
    // Queues run in order: what one has waited for once it need not wait for again, nor for anything before it.
    int& waited = waited_[communicates];
    if (action.wait_for <= waited) {
      action.wait_for = kNone;
    } else {
      waited = action.wait_for;
      actions_[waited].awaited = true;
    }
    for (const StepId id : steps) action_of_[id] = static_cast<int>(actions_.size());
    action.steps = std::move(steps);
    actions_.push_back(std::move(action));
  }

  const RankProgram& program_;
  const std::vector<int>& rounds_;
  std::vector<StreamAction> actions_;
  std::vector<int> action_of_;      // of every step; kNone = not submitted
  int waited_[2] = {kNone, kNone};  // per queue: the last action of the other that it waited for
};

}  // namespace

StatusOr<std::vector<StreamAction>> MakeStreamSchedule(const RankProgram& program, const std::vector<int>& rounds) {
  return Scheduler(program, rounds).Run();
}

}  // namespace tessera
