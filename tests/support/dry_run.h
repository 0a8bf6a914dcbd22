// What a program hands to its communicators, counted without other ranks.
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "collectives/dryrun/communicator.h"
#include "partition/plan.h"
#include "runtime/engine/transfer.h"

namespace tessera::testing {

// Starts all communication steps of one rank over the counting communicator and returns what was received.
inline StatusOr<int64_t> DryRunBytesReceived(std::span<const RankProgram> programs, int rank, DType dtype) {
  const RankProgram& program = programs[rank];
  const auto group_rule = [&](int world_rank, int split) {
    const std::vector<int>& group = programs[world_rank].groups[split];
    return DryRunSplit{group[0], static_cast<int>(std::find(group.begin(), group.end(), world_rank) - group.begin())};
  };
  TESSERA_ASSIGN_OR_RETURN(const auto world,
                           MakeDryRunCommunicator(rank, static_cast<int>(programs.size()), group_rule));
  TESSERA_ASSIGN_OR_RETURN(Communicators comms, Connect(*world, program.groups));
  TESSERA_ASSIGN_OR_RETURN(SlotTable slots, SlotTable::Allocate(program, dtype));
  std::vector<std::vector<std::byte>> external;
  for (SlotId id = 0; id < static_cast<SlotId>(program.slots.size()); ++id) {
    if (!program.slots[id].external) continue;
    external.emplace_back(program.slots[id].bytes());
    slots.Bind(id, external.back().data());
  }
  for (const Step& step : program.steps) {
    if (IsCompute(step.body)) continue;
    TESSERA_ASSIGN_OR_RETURN(Transfer transfer, Transfer::Start(step.body, program, slots, comms));
    TESSERA_ASSIGN_OR_RETURN(const bool done, transfer.Test(slots));
    if (!done) return absl::InternalError("a dry run does not wait");
  }
  return comms.traffic().bytes_received;
}

}  // namespace tessera::testing
