#include "tests/virtual_gpu/ptx/memory_access.h"

#include "tests/virtual_gpu/ptx/shared_shadow.h"
#include "tests/virtual_gpu/ptx/text.h"

namespace tessera::vgpu {
namespace {

constexpr uint32_t kRankShift = 24;  // of a window address of another block in the cluster: its rank + 1 above

uint64_t HostShared(const Block& block) {
  return reinterpret_cast<uint64_t>(block.shared);
}

bool InBlockShared(const Block& block, uint64_t address) {
  return address - HostShared(block) < block.shared_bytes;
}

bool InLocal(const Warp& w, int lane, uint64_t address, uint64_t bytes) {
  const uint64_t size = w.block->run->kernel->local_bytes;
  const uint64_t frame = reinterpret_cast<uint64_t>(w.block->local.data()) + (w.index * kLanes + lane) * size;
  return address - frame < size && bytes <= size - (address - frame);
}

bool InParameters(const Execution& run, uint64_t address, uint64_t bytes) {
  const uint64_t size = run.launch->parameters.size();
  const uint64_t offset = address - reinterpret_cast<uint64_t>(run.parameters);
  return offset < size && bytes <= size - offset;
}

Signal Misaligned(const Instruction& i, Warp& w, int lane, uint64_t address, uint32_t bytes) {
  return w.Fail(i, FaultKind::kMisaligned, lane,
                "address " + Hex(address) + " is no multiple of the " + std::to_string(bytes) + " bytes accessed");
}

Signal ShadowFault(const Instruction& i, Warp& w, int lane, const Block& owner, uint32_t offset, uint32_t bytes,
                   bool write) {
  const auto problem = owner.shadow->Describe(SharedShadow::Of(w, lane), offset, bytes, write, *w.block->run->kernel);
  return w.Fail(i, problem.kind, lane, problem.what);
}

Signal ResolveShared(const Instruction& i, Warp& w, uint32_t lanes, bool cluster, Use use, uint32_t bytes,
                     const uint64_t* addresses, Pointers* pointers) {
  const bool check = w.block->shadow != nullptr;
  SharedShadow::Access access;
  if (check) access = SharedShadow::Of(w, 0);
  for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
    const int l = __builtin_ctz(rest);
    if ((addresses[l] & (bytes - 1)) != 0) return Misaligned(i, w, l, addresses[l], bytes);
    Block* owner = w.block;
    uint8_t* at = SharedBytes(i, w, l, addresses[l], bytes, cluster, &owner);
    if (at == nullptr) return Signal::kFault;
    pointers->at[l] = at;
    if (!check || use != Use::kRead) continue;
    access.lane = l;
    const uint32_t offset = static_cast<uint32_t>(at - reinterpret_cast<uint8_t*>(owner->shared));
    if (!owner->shadow->Read(access, offset, bytes)) return ShadowFault(i, w, l, *owner, offset, bytes, false);
  }
  CountShared(w.block->run->counters, addresses, lanes, bytes, use != Use::kRead);
  return Signal::kNext;
}

Signal ResolveGlobal(const Instruction& i, Warp& w, uint32_t lanes, Space space, Use use, uint32_t bytes,
                     const uint64_t* addresses, Pointers* pointers) {
  Execution& run = *w.block->run;
  const Range range = run.last_range;
  for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
    const int l = __builtin_ctz(rest);
    const uint64_t a = addresses[l];
    pointers->at[l] = reinterpret_cast<uint8_t*>(a);
    if ((a & (bytes - 1)) != 0) return Misaligned(i, w, l, a, bytes);
    if (a >= range.begin && a + bytes <= range.end) continue;
    if (InGlobal(run, a, bytes)) continue;
    if (space == Space::kGeneric && (InLocal(w, l, a, bytes) || InParameters(run, a, bytes))) continue;
    return GlobalFault(i, w, l, a, bytes);
  }
  if (space != Space::kConst) CountGlobal(run.counters, addresses, lanes, bytes, use != Use::kRead);
  return Signal::kNext;
}

}  // namespace

Space SpaceOf(const Binder& b) {
  if (b.Has("global")) return Space::kGlobal;
  if (b.Has("shared::cluster")) return Space::kSharedCluster;
  if (b.Has("shared") || b.Has("shared::cta")) return Space::kShared;
  if (b.Has("const")) return Space::kConst;
  if (b.Has("local")) return Space::kLocal;
  if (b.Has("param") || b.Has("param::entry") || b.Has("param::func")) return Space::kParam;
  return Space::kGeneric;
}

void LaneAddresses(const Instruction& i, const Warp& w, int base, uint64_t addresses[kLanes]) {
  const uint64_t offset = static_cast<uint64_t>(i.immediate);
  if ((i.flags & Binder::kBase64) != 0) {
    const uint64_t* from = w.Read<uint64_t>(i.operand[base]);
    for (int l = 0; l < kLanes; ++l) addresses[l] = from[l] + offset;
  } else {
    const uint32_t* from = w.Read(i.operand[base]);
    for (int l = 0; l < kLanes; ++l) addresses[l] = static_cast<uint32_t>(from[l] + offset);
  }
}

bool InGlobal(Execution& run, uint64_t address, uint64_t bytes) {
  Range found = FindRange(*run.ranges, address, bytes);
  if (found.end == 0) found = FindRange(run.kernel->globals, address, bytes);
  if (found.end == 0) {  // perhaps allocated since the launch began
    run.ranges = run.memory->Current();
    found = FindRange(*run.ranges, address, bytes);
  }
  if (found.end == 0) return false;
  run.last_range = found;
  return true;
}

Signal GlobalFault(const Instruction& i, Warp& w, int lane, uint64_t address, uint64_t bytes) {
  return w.Fail(i, FaultKind::kOutOfBounds, lane,
                std::to_string(bytes) + " bytes at " + Hex(address) + ", " + w.block->run->memory->Describe(address));
}

uint8_t* SharedBytes(const Instruction& i, Warp& w, int lane, uint64_t address, uint32_t bytes, bool cluster,
                     Block** owner) {
  Block* block = w.block;
  uint64_t window = address;
  if (cluster && address >> kRankShift != 0 && address >> 32 == 0) {
    const uint64_t rank = (address >> kRankShift) - 1;
    if (rank < block->cluster->blocks.size()) {
      block = block->cluster->blocks[rank].get();
      window = address & ((1u << kRankShift) - 1);
    }
  }
  const uint64_t offset = window - kSharedBase;
  if (offset >= block->shared_bytes || bytes > block->shared_bytes - offset) {
    w.Fail(i, FaultKind::kOutOfBounds, lane,
           std::to_string(bytes) + " bytes at shared address " + Hex(address) + "; the block has " +
               std::to_string(block->shared_bytes) + " bytes from " + Hex(kSharedBase));
    return nullptr;
  }
  *owner = block;
  return reinterpret_cast<uint8_t*>(block->shared) + offset;
}

Signal CheckSharedWrite(const Instruction& i, Warp& w, int lane, const uint8_t* at, uint32_t bytes, bool same) {
  for (const auto& block : w.block->cluster->blocks) {
    const uint64_t address = reinterpret_cast<uint64_t>(at);
    if (!InBlockShared(*block, address) || block->shadow == nullptr) continue;
    const uint32_t offset = static_cast<uint32_t>(address - HostShared(*block));
    if (!block->shadow->Written(SharedShadow::Of(w, lane), offset, bytes, same)) {
      return ShadowFault(i, w, lane, *block, offset, bytes, true);
    }
    break;
  }
  return Signal::kNext;
}

void RecordSharedAtomic(Warp& w, int lane, const uint8_t* at, uint32_t bytes) {
  for (const auto& block : w.block->cluster->blocks) {
    const uint64_t address = reinterpret_cast<uint64_t>(at);
    if (!InBlockShared(*block, address) || block->shadow == nullptr) continue;
    block->shadow->Stamp(SharedShadow::Of(w, lane), static_cast<uint32_t>(address - HostShared(*block)), bytes);
  }
}

Signal Resolve(const Instruction& i, Warp& w, uint32_t lanes, Space space, Use use, uint32_t bytes,
               const uint64_t addresses[kLanes], Pointers* pointers) {
  switch (space) {
    case Space::kShared:
    case Space::kSharedCluster:
      return ResolveShared(i, w, lanes, space == Space::kSharedCluster, use, bytes, addresses, pointers);
    case Space::kLocal:
      for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
        const int l = __builtin_ctz(rest);
        if ((addresses[l] & (bytes - 1)) != 0) return Misaligned(i, w, l, addresses[l], bytes);
        if (!InLocal(w, l, addresses[l], bytes)) {
          return w.Fail(i, FaultKind::kOutOfBounds, l,
                        std::to_string(bytes) + " bytes outside the thread's local memory of " +
                            std::to_string(w.block->run->kernel->local_bytes) + " bytes");
        }
        pointers->at[l] = reinterpret_cast<uint8_t*>(addresses[l]);
      }
      return Signal::kNext;
    case Space::kGeneric: {
      uint32_t shared = 0;
      uint64_t windows[kLanes];
      for (const auto& block : w.block->cluster->blocks) {
        for (uint32_t rest = lanes & ~shared; rest != 0; rest &= rest - 1) {
          const int l = __builtin_ctz(rest);
          if (!InBlockShared(*block, addresses[l])) continue;
          shared |= 1u << l;
          windows[l] = (addresses[l] - HostShared(*block) + kSharedBase) | uint64_t{block->rank + 1} << kRankShift;
        }
      }
      if (shared != 0) {
        const Signal signal = ResolveShared(i, w, shared, true, use, bytes, windows, pointers);
        if (signal != Signal::kNext || shared == lanes) return signal;
      }
      return ResolveGlobal(i, w, lanes & ~shared, space, use, bytes, addresses, pointers);
    }
    default:
      return ResolveGlobal(i, w, lanes, space == Space::kParam ? Space::kGeneric : space, use, bytes, addresses,
                           pointers);
  }
}

}  // namespace tessera::vgpu
