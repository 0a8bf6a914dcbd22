// Which cores a rank may use, and how many of them are its own when ranks of one node share them.
#pragma once

#include <array>
#include <cstdint>
#include <span>

namespace tessera::launcher {

// Trivially copyable, for exchange between ranks. Processors beyond the 1,024 of cpu_set_t are not counted.
struct CoreSet {
  uint64_t host = 0;                // a digest of the node's name
  std::array<uint64_t, 16> bits{};  // one per processor of the node
};

// This process's affinity mask, as the batch system or mpirun has set it.
CoreSet UsableCoreSet();

// How many cores are rank `rank`'s own: each of those it may use counts as one over the ranks that may use it. Ranks
// bound to cores of their own have all of those, unbound ones the cores of the node divided by its ranks.
double CoreShare(std::span<const CoreSet> ranks, int rank);
// Compute threads for that share; at least one.
int ThreadsOfShare(double share);

}  // namespace tessera::launcher
