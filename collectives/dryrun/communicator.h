// A communicator that counts and moves nothing: what a plan will send, for any number of ranks, without running it.
// Requests complete at once, buffers are never touched and may be null, ranks may run one after the other in one
// thread.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "collectives/communicator.h"

namespace tessera {

// A dry-run rank cannot ask its peers, so Split learns their colours from a rule: the colour and key that `world_rank`
// passes in its `split`-th Split (from 0), counted over its world communicator and all made from it. Programs that
// split by a function of the rank pass that function here. Without a rule Split is refused.
struct DryRunSplit {
  int color = 0;
  int key = 0;
};
using DryRunSplitRule = std::function<DryRunSplit(int world_rank, int split)>;

StatusOr<std::unique_ptr<Communicator>> MakeDryRunCommunicator(int rank, int size, DryRunSplitRule rule = nullptr);
StatusOr<std::vector<std::unique_ptr<Communicator>>> MakeDryRunWorld(int size, const DryRunSplitRule& rule = nullptr);

}  // namespace tessera
