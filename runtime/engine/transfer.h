// One communication step in flight. Internal to the engine.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "collectives/communicator.h"
#include "partition/plan.h"
#include "runtime/base/status.h"
#include "runtime/engine/slots.h"

namespace tessera {

// Where a step's messages go: the world for point to point, a group's communicator for exchanges.
struct Communicators {
  Communicator* world = nullptr;
  std::vector<std::unique_ptr<Communicator>> groups;  // per RankProgram::groups; null where the group is the rank alone
  Traffic traffic() const;                            // of the world and all groups
};
// Collective over `world`, which outlives the result: makes the communicators of a program's groups.
StatusOr<Communicators> Connect(Communicator& world, std::span<const std::vector<int>> groups);
Traffic Since(const Traffic& now, const Traffic& before);

class Transfer {
 public:
  // Starts the step; buffers are those of `slots`.
  static StatusOr<Transfer> Start(const StepBody& body, const RankProgram& program, const SlotTable& slots,
                                  Communicators& comms);
  // True when complete; whatever had to be unpacked has been.
  StatusOr<bool> Test(const SlotTable& slots);
  int64_t bytes() const { return bytes_; }

 private:
  Request request_;
  const ExchangeStep* unpack_ = nullptr;  // received through staging
  int rank_ = 0;
  int64_t bytes_ = 0;
};

}  // namespace tessera
