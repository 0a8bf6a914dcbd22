// Coalescing and bank conflicts of one access, by the rules of the CUDA programming guide: global memory moves in
// 32-byte sectors; shared memory has 32 banks of 4 bytes, and wide accesses are served in parts of 128 bytes.
#include <algorithm>

#include "tests/virtual_gpu/ptx/memory_access.h"

namespace tessera::vgpu {
namespace {

constexpr uint32_t kSectorBytes = 32;
constexpr int kBanks = 32;

}  // namespace

void CountGlobal(Counters& counters, const uint64_t* addresses, uint32_t lanes, uint32_t bytes, bool write) {
  uint64_t sectors[kLanes];
  int count = 0;
  uint64_t last = ~uint64_t{0};
  bool sorted = true;
  for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
    const uint64_t sector = addresses[__builtin_ctz(rest)] / kSectorBytes;
    if (sector == last) continue;
    sorted &= count == 0 || sector > last;
    sectors[count++] = last = sector;
  }
  if (!sorted) {
    std::sort(sectors, sectors + count);
    count = static_cast<int>(std::unique(sectors, sectors + count) - sectors);
  }
  const uint64_t total = uint64_t{bytes} * __builtin_popcount(lanes);
  (write ? counters.global_written_bytes : counters.global_read_bytes) += total;
  ++counters.global_requests;
  counters.global_sectors += count;
  // Lanes that read the same bytes need them once.
  counters.global_ideal_sectors += std::min<uint64_t>(count, (total + kSectorBytes - 1) / kSectorBytes);
}

void CountShared(Counters& counters, const uint64_t* addresses, uint32_t lanes, uint32_t bytes, bool write) {
  const int words = bytes <= 4 ? 1 : static_cast<int>(bytes / 4);
  const int lanes_per_part = kLanes / words;  // 8-byte accesses: half warps, 16-byte accesses: quarters
  uint64_t passes = 0, ideal = 0;
  for (int first = 0; first < kLanes; first += lanes_per_part) {
    const uint32_t part = lanes_per_part == kLanes ? lanes : lanes >> first & ((1u << lanes_per_part) - 1);
    if (part == 0) continue;
    uint32_t seen[kBanks];  // the word a bank serves in this part
    uint8_t conflicts[kBanks] = {};
    uint32_t used = 0;
    uint8_t most = 1;
    for (uint32_t rest = part; rest != 0; rest &= rest - 1) {
      const uint32_t word = static_cast<uint32_t>(addresses[first + __builtin_ctz(rest)] / 4);
      const uint32_t bank = word % kBanks;
      if ((used >> bank & 1) == 0) {
        used |= 1u << bank;
        seen[bank] = word;
        conflicts[bank] = 1;
      } else if (seen[bank] != word) {  // an earlier word may come back: then this counts one too many, which is rare
        seen[bank] = word;
        most = std::max(most, ++conflicts[bank]);
      }
    }
    passes += most;
    ++ideal;
  }
  (write ? counters.shared_written_bytes : counters.shared_read_bytes) += uint64_t{bytes} * __builtin_popcount(lanes);
  ++counters.shared_requests;
  counters.shared_passes += passes;
  counters.shared_ideal_passes += ideal;
}

}  // namespace tessera::vgpu
