#include "tests/virtual_gpu/ptx/address_space.h"

#include <algorithm>

#include "tests/virtual_gpu/ptx/text.h"

namespace tessera::vgpu {
namespace {

bool BeginsAfter(uint64_t address, const Range& range) {
  return address < range.begin;
}

}  // namespace

Range FindRange(const std::vector<Range>& sorted, uint64_t address, uint64_t bytes) {
  auto next = std::upper_bound(sorted.begin(), sorted.end(), address, BeginsAfter);
  if (next == sorted.begin()) return {};
  const Range& range = *--next;
  return address < range.end && bytes <= range.end - address ? range : Range{};
}

AddressSpace::AddressSpace() : ranges_(std::make_shared<std::vector<Range>>()) {}

bool AddressSpace::Add(uint64_t base, uint64_t bytes) {
  if (bytes == 0 || base + bytes < base) return false;
  std::lock_guard lock(mutex_);
  auto ranges = std::make_shared<std::vector<Range>>(*ranges_);
  auto next = std::upper_bound(ranges->begin(), ranges->end(), base, BeginsAfter);
  if (next != ranges->end() && next->begin < base + bytes) return false;
  if (next != ranges->begin() && std::prev(next)->end > base) return false;
  ranges->insert(next, {base, base + bytes});
  ranges_ = std::move(ranges);
  return true;
}

bool AddressSpace::Remove(uint64_t base) {
  std::lock_guard lock(mutex_);
  auto ranges = std::make_shared<std::vector<Range>>(*ranges_);
  auto found = std::find_if(ranges->begin(), ranges->end(), [&](const Range& range) { return range.begin == base; });
  if (found == ranges->end()) return false;
  ranges->erase(found);
  ranges_ = std::move(ranges);
  return true;
}

bool AddressSpace::Contains(uint64_t address, uint64_t bytes) const {
  return FindRange(*Current(), address, bytes).end != 0;
}

AddressSpace::Snapshot AddressSpace::Current() const {
  std::lock_guard lock(mutex_);
  return ranges_;
}

std::string AddressSpace::Describe(uint64_t address) const {
  const Snapshot ranges = Current();
  auto next = std::upper_bound(ranges->begin(), ranges->end(), address, BeginsAfter);
  const auto of = [](const Range& range) {
    return " the allocation of " + std::to_string(range.end - range.begin) + " bytes at " + Hex(range.begin);
  };
  if (next != ranges->begin()) {
    const Range& before = *std::prev(next);
    if (address < before.end) return std::to_string(address - before.begin) + " bytes into" + of(before);
    if (next == ranges->end() || address - before.end <= next->begin - address) {
      return std::to_string(address - before.end) + " bytes past the end of" + of(before);
    }
  }
  if (next == ranges->end()) return "in no allocation: there is none";
  return std::to_string(next->begin - address) + " bytes before" + of(*next);
}

}  // namespace tessera::vgpu
