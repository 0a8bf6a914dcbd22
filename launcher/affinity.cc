#include "launcher/affinity.h"

#include <sched.h>

#include <algorithm>
#include <vector>

#include "launcher/host.h"

namespace tessera::launcher {

CoreSet UsableCoreSet() {
  CoreSet set;
  set.host = 0xcbf29ce484222325;  // FNV-1a
  for (const char c : HostName()) set.host = (set.host ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  cpu_set_t cores;
  if (sched_getaffinity(0, sizeof cores, &cores) != 0) return set;
  for (size_t i = 0; i < set.bits.size() * 64 && i < CPU_SETSIZE; ++i) {
    if (CPU_ISSET(i, &cores)) set.bits[i / 64] |= uint64_t{1} << i % 64;
  }
  return set;
}

double CoreShare(std::span<const CoreSet> ranks, int rank) {
  const CoreSet& own = ranks[rank];
  std::vector<int> users(own.bits.size() * 64);
  for (const CoreSet& other : ranks) {
    if (other.host != own.host) continue;
    for (size_t i = 0; i < users.size(); ++i) users[i] += static_cast<int>(other.bits[i / 64] >> i % 64 & 1);
  }
  double share = 0;
  for (size_t i = 0; i < users.size(); ++i) {
    if ((own.bits[i / 64] >> i % 64 & 1) != 0) share += 1.0 / users[i];
  }
  return share;
}

int ThreadsOfShare(double share) {
  // Sums of thirds and the like fall short of whole numbers by rounding.
  return std::max(1, static_cast<int>(share + 1e-6));
}

}  // namespace tessera::launcher
