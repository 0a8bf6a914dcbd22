// Threads as ranks: a world inside one process, with faults on demand.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "collectives/communicator.h"

namespace tessera {

struct InprocFault {
  enum class Kind : uint8_t {
    kKill,    // the rank's operations fail and its peers see at once that it is gone
    kFreeze,  // the rank's thread stops in its operation and its heartbeat with it, until every other rank has left
  };
  Kind kind = Kind::kKill;
  int rank = 0;
  int64_t after_operations = 0;  // public operations of that rank that still succeed
};

struct InprocOptions {
  std::chrono::milliseconds deadline{30000};
  // False: a send completes only when it was received, as large messages of other transports do.
  bool eager = true;
  std::vector<InprocFault> faults = {};
  // Each message becomes visible after a random time up to this, so messages of different peers overtake each other.
  std::chrono::microseconds longest_delay{0};
  uint64_t delay_seed = 0;
};

// One communicator per rank, each to be used by its own thread. A communicator leaves the world when it and all made
// from it by Split are destroyed. With a kFreeze fault use RunRanks, or join the frozen rank's thread only after the
// other communicators are destroyed.
StatusOr<std::vector<std::unique_ptr<Communicator>>> MakeInprocWorld(int size, const InprocOptions& options = {});

// Runs `program` on a thread per rank and joins them all. A rank whose program returns an error is reported to its
// peers as failed. Of several errors the lowest rank's is returned, as "rank 2: ..."; errors about peers count only
// when there are no others, so the cause is returned and not its consequences.
Status RunRanks(int size, const InprocOptions& options, const std::function<Status(Communicator&)>& program);

}  // namespace tessera
