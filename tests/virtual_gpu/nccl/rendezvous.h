// How the ranks of a new communicator find each other: a page of shared memory named after the unique id, in which each
// enters its MPI rank and its GPU. Virtual GPUs live on one node, so this needs no network.
#pragma once

#include <nccl.h>

#include <atomic>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "collectives/context_pool.h"

namespace tessera::vgpu {

struct Member {
  int world_rank = -1;  // in MPI_COMM_WORLD
  int device = -1;
  internal::ContextPool::Mask free_contexts{};
};

// Enters this rank and waits until all `ranks` are there, as long as `give_up` is false. nullopt and *error otherwise.
std::optional<std::vector<Member>> Meet(const ncclUniqueId& id, int ranks, int rank, Member self,
                                        const std::function<bool()>& give_up, std::string* error);

// An id that no other process of this node has made.
ncclUniqueId MakeUniqueId();

}  // namespace tessera::vgpu
