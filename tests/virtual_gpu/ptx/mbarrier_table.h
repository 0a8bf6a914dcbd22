// The mbarriers of a block. Their state is kept beside shared memory, found by address: PTX leaves its bits opaque.
#pragma once

#include <vector>

#include "tests/virtual_gpu/ptx/warp.h"

namespace tessera::vgpu {

struct Mbarrier {
  uint32_t offset = 0;    // in shared memory
  uint32_t expected = 0;  // arrivals of a phase
  uint32_t pending = 0;   // arrivals still missing
  int64_t pending_bytes = 0;
  uint64_t phase = 0;         // completed phases
  Clock arriving, completed;  // what the arrivals of this phase, and of the last complete one, had done before
};

struct MbarrierTable {
  std::vector<Mbarrier> barriers;
  Mbarrier* Find(uint32_t offset) {
    for (Mbarrier& barrier : barriers) {
      if (barrier.offset == offset) return &barrier;
    }
    return nullptr;
  }
};

// Ends the phase if nothing is missing any more; whoever waits in `block` is woken.
void CompletePhase(Block& block, Mbarrier& barrier);

// What is missing for the phase in progress, for messages.
std::string Missing(const Mbarrier& barrier);

// count arrivals of `warp`. A fault when there are more than the phase still wants.
Signal Arrive(const Instruction& i, Warp& warp, int lane, Block& owner, Mbarrier& barrier, uint32_t count);

// The mbarrier at a window address; null and a fault where there is none.
Mbarrier* FindMbarrier(const Instruction& i, Warp& warp, int lane, uint64_t address, bool cluster, Block** owner);

}  // namespace tessera::vgpu
