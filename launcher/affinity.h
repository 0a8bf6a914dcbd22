// Which cores a rank may use, and how many of them are its own when ranks of one node share them.
#pragma once

#include <cstdint>
#include <span>

#include "runtime/device/numa.h"

namespace tessera::launcher {

// Trivially copyable, for exchange between ranks.
struct CoreSet {
  uint64_t host = 0;  // a digest of the node's name
  CoreMask bits;
};

// This process's affinity mask, as the batch system or mpirun has set it.
CoreSet UsableCoreSet();

// How many cores are rank `rank`'s own: each of those it may use counts as one over the ranks that may use it. Ranks
// bound to cores of their own have all of those, unbound ones the cores of the node divided by its ranks.
double CoreShare(std::span<const CoreSet> ranks, int rank);
// Compute threads for that share; at least one.
int ThreadsOfShare(double share);

// Where rank `rank` should keep its threads, given the NUMA nodes of its machine, so that they and the memory that they
// touch first stay together. Ranks of one machine that may use the very same cores of several NUMA nodes divide these:
// in order of ranks and nodes, each an equal run of cores, rounded up to whole NUMA nodes so that the system may still
// move threads within one. A rank with cores of its own, or of one NUMA node, keeps all that the launcher gave it.
CoreMask Placement(std::span<const CoreSet> ranks, int rank, std::span<const NumaNode> nodes);
// Keeps this thread and those it will start to `cores`. A hint: nothing changes when the system refuses.
void KeepTo(const CoreMask& cores);

}  // namespace tessera::launcher
