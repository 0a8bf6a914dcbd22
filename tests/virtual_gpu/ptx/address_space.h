// Which global memory exists. Device addresses are host addresses, so an allocation is a host range that kernels may
// touch.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace tessera::vgpu {

struct Range {
  uint64_t begin = 0;
  uint64_t end = 0;  // exclusive
};

// Every allocation of a virtual device. Thread-safe.
class AddressSpace {
 public:
  using Snapshot = std::shared_ptr<const std::vector<Range>>;  // sorted by begin

  AddressSpace();
  // False when the range is empty or overlaps one that is there.
  bool Add(uint64_t base, uint64_t bytes);
  // False when no allocation begins at `base`.
  bool Remove(uint64_t base);
  bool Contains(uint64_t address, uint64_t bytes) const;
  // Where an address lies, for messages: "12 bytes past the end of the allocation of 4096 bytes at 0x7f..".
  std::string Describe(uint64_t address) const;
  Snapshot Current() const;

 private:
  mutable std::mutex mutex_;
  Snapshot ranges_;  // replaced, never changed: running kernels keep reading the one they took
};

// The allocation that holds [address, address + bytes), or an empty range.
Range FindRange(const std::vector<Range>& sorted, uint64_t address, uint64_t bytes);

}  // namespace tessera::vgpu
