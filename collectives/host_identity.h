// Whether two processes share a process table, and whether a process of this table still exists.
#pragma once

#include <cstdint>

namespace tessera {

// Equal for processes that see the same pids: boot id, host name and pid namespace, hashed. Never 0.
uint64_t HostIdentity();

// True when no process has this pid. Zombies still have theirs: their parent (mpirun, slurmstepd) reaps them at once.
bool ProcessIsGone(int32_t pid);

}  // namespace tessera
