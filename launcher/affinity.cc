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
  set.bits = CoresOfThisThread();
  return set;
}

double CoreShare(std::span<const CoreSet> ranks, int rank) {
  const CoreSet& own = ranks[rank];
  std::vector<int> users(own.bits.size());
  for (const CoreSet& other : ranks) {
    if (other.host != own.host) continue;
    for (size_t i = 0; i < users.size(); ++i) users[i] += other.bits[i] ? 1 : 0;
  }
  double share = 0;
  for (size_t i = 0; i < users.size(); ++i) {
    if (own.bits[i]) share += 1.0 / users[i];
  }
  return share;
}

int ThreadsOfShare(double share) {
  // Sums of thirds and the like fall short of whole numbers by rounding.
  return std::max(1, static_cast<int>(share + 1e-6));
}

CoreMask Placement(std::span<const CoreSet> ranks, int rank, std::span<const NumaNode> nodes) {
  const CoreSet& own = ranks[rank];
  int64_t sharers = 0, place = 0;
  for (size_t i = 0; i < ranks.size(); ++i) {
    if (ranks[i].host != own.host || ranks[i].bits != own.bits) continue;
    if (static_cast<int>(i) < rank) ++place;
    ++sharers;
  }
  std::vector<CoreMask> parts;
  int64_t cores = 0;
  const auto count = [](const CoreMask& mask) { return static_cast<int64_t>(mask.count()); };
  for (const NumaNode& node : nodes) {
    parts.push_back(node.cores & own.bits);
    cores += count(parts.back());
  }
  if (sharers < 2 || cores != count(own.bits)) return own.bits;
  const int64_t begin = place * cores / sharers, end = std::max(begin + 1, (place + 1) * cores / sharers);
  CoreMask kept;
  int64_t first = 0;
  for (const CoreMask& part : parts) {
    const int64_t last = first + count(part);
    if (first < end && begin < last) kept |= part;
    first = last;
  }
  return kept;
}

void KeepTo(const CoreMask& cores) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (size_t i = 0; i < cores.size() && i < CPU_SETSIZE; ++i) {
    if (cores[i]) CPU_SET(i, &set);
  }
  (void)sched_setaffinity(0, sizeof set, &set);
}

}  // namespace tessera::launcher
