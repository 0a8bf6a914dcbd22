// cp.async with 4, 8 and 16 bytes, its groups and their waits.
#include "tests/virtual_gpu/ptx/async_copies.h"
#include "tests/virtual_gpu/ptx/memory_access.h"
#include "tests/virtual_gpu/ptx/shared_shadow.h"

namespace tessera::vgpu {

template <class Done>
void AsyncCopies::Deliver(Warp& warp, const Done& done) {
  size_t left = 0;
  SharedShadow* shadow = warp.block->shadow.get();
  for (const Copy& copy : copies_) {
    if (!done(copy)) {
      copies_[left++] = copy;
      continue;
    }
    std::memcpy(copy.to, copy.from, copy.source_bytes);
    std::memset(copy.to + copy.source_bytes, 0, copy.bytes - copy.source_bytes);
    if (shadow == nullptr) continue;
    shadow->End(copy.offset, copy.bytes);
    shadow->Stamp(SharedShadow::Of(warp, copy.lane), copy.offset, copy.bytes);
  }
  copies_.resize(left);
}

void AsyncCopies::Wait(Warp& warp, uint32_t lanes, uint32_t keep) {
  Deliver(warp, [&](const Copy& copy) {
    return (lanes >> copy.lane & 1) != 0 && uint64_t{copy.group} + keep < group_[copy.lane];
  });
}

void AsyncCopies::Finish(Warp& warp, int lane) {
  Deliver(warp, [&](const Copy& copy) { return copy.lane == lane; });
}

namespace {

constexpr uint32_t kIgnoreSource = 1, kIgnoreNegated = 2;  // small

// operand: destination, source, source bytes or predicate; immediate: offset of the destination; target: of the source;
// flags: bytes.
Signal CpAsync(const Instruction& i, Warp& w, uint32_t lanes) {
  const uint32_t bytes = i.flags & 0xff;
  Execution& run = *w.block->run;
  uint64_t to[kLanes], from[kLanes];
  LaneAddresses(i, w, 0, to);
  const uint64_t* source = w.Read<uint64_t>(i.operand[1]);
  const uint32_t* limit = i.operand[2] == Instruction::kNoSlot ? nullptr : w.Read(i.operand[2]);
  uint32_t reading = 0;
  for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
    const int l = __builtin_ctz(rest);
    from[l] = source[l] + static_cast<int64_t>(i.target);
    uint32_t source_bytes = bytes;
    if (limit != nullptr && (i.small & kIgnoreSource) != 0) {
      source_bytes = (limit[l] != 0) != ((i.small & kIgnoreNegated) != 0) ? 0 : bytes;
    } else if (limit != nullptr) {
      source_bytes = limit[l];
    }
    if (source_bytes > bytes) {
      return w.Fail(i, FaultKind::kOutOfBounds, l,
                    "a source of " + std::to_string(source_bytes) + " bytes for a copy of " + std::to_string(bytes));
    }
    if (to[l] % bytes != 0 || (source_bytes != 0 && from[l] % bytes != 0)) {
      return w.Fail(i, FaultKind::kMisaligned, l,
                    "source and destination must be multiples of " + std::to_string(bytes));
    }
    if (source_bytes != 0 && !InGlobal(run, from[l], source_bytes)) return GlobalFault(i, w, l, from[l], source_bytes);
    Block* owner = w.block;
    uint8_t* at = SharedBytes(i, w, l, to[l], bytes, false, &owner);
    if (at == nullptr) return Signal::kFault;
    const Signal check = CheckSharedWrite(i, w, l, at, bytes, false);
    if (check != Signal::kNext) return check;
    const uint32_t offset = static_cast<uint32_t>(to[l] - kSharedBase);
    if (w.block->shadow != nullptr) w.block->shadow->Begin(offset, bytes, w.pc);
    w.copies->Add({at, reinterpret_cast<const uint8_t*>(from[l]), offset, static_cast<uint8_t>(bytes),
                   static_cast<uint8_t>(source_bytes), static_cast<uint8_t>(l), 0});
    if (source_bytes != 0) reading |= 1u << l;
  }
  if (reading != 0) CountGlobal(run.counters, from, reading, bytes, false);
  CountShared(run.counters, to, lanes, bytes, true);
  return Signal::kNext;
}

Signal Commit(const Instruction&, Warp& w, uint32_t lanes) {
  w.copies->Commit(lanes);
  return Signal::kNext;
}

Signal WaitGroup(const Instruction& i, Warp& w, uint32_t lanes) {
  w.copies->Wait(w, lanes, static_cast<uint32_t>(i.immediate));
  return Signal::kNext;
}

Signal WaitAll(const Instruction&, Warp& w, uint32_t lanes) {
  w.copies->Commit(lanes);
  w.copies->Wait(w, lanes, 0);
  return Signal::kNext;
}

Handler BindCopy(Binder& b) {
  // [to], [from], bytes {, source bytes | ignore predicate} {, cache policy}
  const size_t hint = b.Has("L2::cache_hint") ? 1 : 0;
  const size_t count = b.Operands() - hint;
  if (b.Operands() < 3 + hint || count > 4 || b.At(2).kind != Operand::kImmediate) return nullptr;
  const uint64_t bytes = b.At(2).bits;
  if (bytes != 16 && (b.Has("cg") || (bytes != 4 && bytes != 8))) return nullptr;
  Instruction& out = b.out();
  b.BindAddress(b.At(1), 1);
  if (b.RegisterBits(b.At(1).parts.empty() ? b.At(1) : b.At(1).parts[0]) == 32) return nullptr;
  out.target = static_cast<int32_t>(out.immediate);
  out.flags = 0;
  b.BindAddress(b.At(0), 0);
  out.flags = static_cast<uint32_t>(bytes) | (out.flags & Binder::kBase64);
  out.operand[2] = Instruction::kNoSlot;
  if (count == 4) {
    Operand limit = b.At(3);
    const bool predicate = b.RegisterBits(limit) == 1;
    if (predicate) out.small = static_cast<uint8_t>(kIgnoreSource | (limit.negated ? kIgnoreNegated : 0));
    limit.negated = false;
    out.operand[2] = b.Source(limit, predicate ? 1 : 32);
  }
  return &CpAsync;
}

}  // namespace

Handler BindAsyncCopy(Binder& b) {
  if (b.Part(0) != "cp" || b.Part(1) != "async") return nullptr;
  b.out().kind = InstructionClass::kAsyncCopy;
  const std::string_view what = b.Part(2);
  if (what == "ca" || what == "cg") return BindCopy(b);
  if (what == "commit_group") return &Commit;
  if (what == "wait_all") return &WaitAll;
  if (what == "wait_group" && b.Operands() == 1 && b.At(0).kind == Operand::kImmediate) {
    b.out().immediate = static_cast<int64_t>(b.At(0).bits);
    return &WaitGroup;
  }
  return nullptr;
}

}  // namespace tessera::vgpu
