// How a host thread submits a rank's program to a device that runs two queues in order: compute on one stream,
// communication on another, each waiting for events of the other. Internal to the engine; integers only.
#pragma once

#include <vector>

#include "partition/plan.h"
#include "runtime/base/status.h"

namespace tessera {

// A compute step, or all messages of one round.
struct StreamAction {
  bool communicates = false;
  std::vector<StepId> steps;  // one compute step, or the steps of a round in program order
  int wait_for = kNone;  // the action of the other queue that must be over first; kNone = none that was not awaited
  bool awaited = false;  // an action of the other queue waits for this one: its end needs an event
};

// In the order of submission: what an action waits for comes before it, and rounds as early as that allows. `rounds`
// are this rank's of MessageRounds. Internal when a compute step and a round wait for each other, which MessageRounds
// rules out.
StatusOr<std::vector<StreamAction>> MakeStreamSchedule(const RankProgram& program, const std::vector<int>& rounds);

}  // namespace tessera
