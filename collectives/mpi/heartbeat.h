// The heartbeat of an MPI world: a thread that beats, gossips over its own communicator and feeds Liveness. It only
// starts and tests messages, so a peer that stopped cannot hold it up.
#pragma once

#include <chrono>
#include <memory>

#include "collectives/liveness.h"

namespace tessera::internal {

class Heartbeat {
 public:
  // Collective over `parent`, a Fortran handle. Needs MPI_THREAD_MULTIPLE.
  static StatusOr<std::unique_ptr<Heartbeat>> Start(int parent, std::shared_ptr<Liveness> liveness,
                                                    std::chrono::milliseconds interval);
  // Stops the thread. Leaves the communicator to MPI unless Finish() succeeded.
  ~Heartbeat();

  // Collective: beats on until every rank is here, then receives what is still on its way and frees the communicator.
  // Returns early when the world is unhealthy.
  Status Finish();

 private:
  struct Impl;
  explicit Heartbeat(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace tessera::internal
