#include "tests/virtual_gpu/ptx/shared_shadow.h"

#include <algorithm>

#include "tests/virtual_gpu/ptx/text.h"

namespace tessera::vgpu {

SharedShadow::SharedShadow(uint32_t bytes, uint32_t agents, uint32_t agents_per_block)
    : agents_per_block_(agents_per_block),
      writes_(bytes / 4 + 1),
      write_pc_(bytes / 4 + 1),
      in_flight_(bytes / 4 + 1),
      reads_(agents, std::vector<uint32_t>(bytes / 4 + 1)) {}

void SharedShadow::Clear() {
  std::fill(writes_.begin(), writes_.end(), Write());
  std::fill(in_flight_.begin(), in_flight_.end(), 0);
  for (auto& reads : reads_) std::fill(reads.begin(), reads.end(), 0);
}

SharedShadow::Access SharedShadow::Of(const Warp& warp, int lane) {
  return {warp.agent, lane, &warp.clock, warp.clock[warp.agent], warp.block->run->clock_base, warp.pc};
}

bool SharedShadow::Written(const Access& a, uint32_t offset, uint32_t bytes, bool same) {
  const uint32_t first = offset / 4, last = (offset + bytes - 1) / 4;
  for (uint32_t word = first; word <= last; ++word) {
    const uint32_t mask = Mask(word, offset, bytes);
    const Write& w = writes_[word];
    if (in_flight_[word] != 0) return false;
    if (w.clock > a.base && (w.mask & mask) != 0 && !same && Unordered(a, w)) return false;
  }
  if (!same) {
    for (uint32_t r = 0; r < reads_.size(); ++r) {
      if (r == a.agent) continue;
      const uint32_t known = (*a.order)[r];
      const uint32_t* reads = reads_[r].data();
      for (uint32_t word = first; word <= last; ++word) {
        if (reads[word] >> 4 > known && (reads[word] & Mask(word, offset, bytes)) != 0) return false;
      }
    }
  }
  Stamp(a, offset, bytes);
  return true;
}

void SharedShadow::Stamp(const Access& a, uint32_t offset, uint32_t bytes) {
  for (uint32_t word = offset / 4; word <= (offset + bytes - 1) / 4; ++word) {
    const uint32_t mask = Mask(word, offset, bytes);
    Write& w = writes_[word];
    w.initial = w.clock > a.base ? w.initial | mask : mask;
    w.mask = mask;
    w.clock = a.epoch;
    w.agent = static_cast<uint16_t>(a.agent);
    w.lane = static_cast<uint8_t>(a.lane);
    write_pc_[word] = a.pc;
  }
}

void SharedShadow::Begin(uint32_t offset, uint32_t bytes, uint32_t pc) {
  for (uint32_t word = offset / 4; word <= (offset + bytes - 1) / 4; ++word) {
    ++in_flight_[word];
    write_pc_[word] = pc;
  }
}

void SharedShadow::End(uint32_t offset, uint32_t bytes) {
  for (uint32_t word = offset / 4; word <= (offset + bytes - 1) / 4; ++word) --in_flight_[word];
}

SharedShadow::Problem SharedShadow::Describe(const Access& a, uint32_t offset, uint32_t bytes, bool write,
                                             const Kernel& kernel) const {
  const auto line = [&](uint32_t pc) {
    const Statement& source = *kernel.code[pc].source;
    return "line " + std::to_string(source.line) + " `" + source.text + "`";
  };
  for (uint32_t word = offset / 4; word <= (offset + bytes - 1) / 4; ++word) {
    const uint32_t mask = Mask(word, offset, bytes);
    const Write& w = writes_[word];
    const std::string where = "shared address " + Hex(kSharedBase + std::max(word * 4, offset)) + " is ";
    const std::string verb = write ? "written" : "read";
    if (in_flight_[word] != 0) {
      return {FaultKind::kMissingWait, where + verb + " while a copy into it is in flight, begun at " +
                                           line(write_pc_[word]) + ": a wait for it is missing or too short"};
    }
    const bool ours = w.clock > a.base;
    if (!write && (!ours || (w.initial & mask) != mask)) {
      return {FaultKind::kUninitializedShared, where + "read but was never written by this block"};
    }
    if (ours && (w.mask & mask) != 0) {
      const bool other = w.agent != a.agent || a.fenced != nullptr;
      if (Unordered(a, w)) {
        const bool copy = w.agent % agents_per_block_ == agents_per_block_ - 1;
        const std::string who = copy    ? "an asynchronous copy"
                                : other ? "warp " + std::to_string(w.agent % agents_per_block_)
                                        : "lane " + std::to_string(w.lane) + " of the same warp";
        return {copy ? FaultKind::kMissingWait : FaultKind::kSharedRace,
                where + verb + " without being synchronised with its write by " + who + " at " + line(write_pc_[word])};
      }
    }
    if (!write && ours && a.fenced != nullptr && Unfenced(a, w)) {
      return {FaultKind::kMissingFence,
              where + "read by the asynchronous proxy, and no fence.proxy.async came after its write at " +
                  line(write_pc_[word])};
    }
    if (const int reader = UnorderedReader(a, word, mask); write && reader >= 0) {
      return {FaultKind::kSharedRace, where + "written without being synchronised with its read by warp " +
                                          std::to_string(reader % static_cast<int>(agents_per_block_))};
    }
  }
  return {FaultKind::kSharedRace, "shared address " + Hex(kSharedBase + offset)};
}

}  // namespace tessera::vgpu
