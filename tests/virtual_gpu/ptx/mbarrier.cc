// mbarrier.*: arrivals, bytes of asynchronous copies, phases. try_wait sleeps until its phase is complete, which the
// ISA allows; test_wait only looks.
#include "tests/virtual_gpu/ptx/async_copies.h"
#include "tests/virtual_gpu/ptx/mbarrier_table.h"
#include "tests/virtual_gpu/ptx/memory_access.h"
#include "tests/virtual_gpu/ptx/shared_shadow.h"
#include "tests/virtual_gpu/ptx/text.h"

namespace tessera::vgpu {

void CompletePhase(Block& block, Mbarrier& barrier) {
  if (barrier.pending != 0 || barrier.pending_bytes != 0) return;
  barrier.pending = barrier.expected;
  ++barrier.phase;
  barrier.completed = barrier.arriving;
  std::fill(barrier.arriving.begin(), barrier.arriving.end(), 0);
  ++block.wakeups;
}

std::string Missing(const Mbarrier& barrier) {
  return "mbarrier at shared address " + Hex(kSharedBase + barrier.offset) + ": phase " +
         std::to_string(barrier.phase) + " lacks " + std::to_string(barrier.pending) + " of " +
         std::to_string(barrier.expected) + " arrivals and " + std::to_string(barrier.pending_bytes) + " bytes";
}

Signal Arrive(const Instruction& i, Warp& warp, int lane, Block& owner, Mbarrier& barrier, uint32_t count) {
  if (count > barrier.pending) {
    return warp.Fail(i, FaultKind::kBarrier, lane,
                     std::to_string(count) + " arrivals are more than are expected; " + Missing(barrier));
  }
  barrier.pending -= count;
  Join(barrier.arriving, warp.clock);
  CompletePhase(owner, barrier);
  return Signal::kNext;
}

Mbarrier* FindMbarrier(const Instruction& i, Warp& warp, int lane, uint64_t address, bool cluster, Block** owner) {
  if (address % 8 != 0) {
    warp.Fail(i, FaultKind::kMisaligned, lane, "an mbarrier's address must be a multiple of 8");
    return nullptr;
  }
  const uint8_t* at = SharedBytes(i, warp, lane, address, 8, cluster, owner);
  if (at == nullptr) return nullptr;
  const uint32_t offset = static_cast<uint32_t>(at - reinterpret_cast<const uint8_t*>((*owner)->shared));
  Mbarrier* barrier = (*owner)->mbarriers->Find(offset);
  if (barrier == nullptr)
    warp.Fail(i, FaultKind::kBarrier, lane, "no mbarrier was initialised at shared address " + Hex(address));
  return barrier;
}

namespace {

enum Options : uint32_t {
  kHasCount = 1,
  kExpectTx = 2,
  kCluster = 4,
  kDrop = 8,
  kParity = 16,
  kTest = 32,
  kNoIncrement = 64
};

uint64_t StateOf(const Mbarrier& barrier) {
  return barrier.phase;
}

// operand: result, address, count or bytes
Signal Init(const Instruction& i, Warp& w, uint32_t lanes) {
  uint64_t addresses[kLanes];
  LaneAddresses(i, w, 1, addresses);
  for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
    const int l = __builtin_ctz(rest);
    Block* owner = w.block;
    if (addresses[l] % 8 != 0)
      return w.Fail(i, FaultKind::kMisaligned, l, "an mbarrier's address must be a multiple of 8");
    uint8_t* at = SharedBytes(i, w, l, addresses[l], 8, false, &owner);
    if (at == nullptr) return Signal::kFault;
    const uint32_t count = w.Read(i.operand[2])[l];
    if (count == 0 || count >= 1u << 20) {
      return w.Fail(i, FaultKind::kBarrier, l, "a count of " + std::to_string(count) + "; allowed: 1 to 2^20 - 1");
    }
    const uint32_t offset = static_cast<uint32_t>(addresses[l] - kSharedBase);
    Mbarrier* barrier = owner->mbarriers->Find(offset);
    if (barrier == nullptr) {
      owner->mbarriers->barriers.emplace_back();
      barrier = &owner->mbarriers->barriers.back();
    }
    *barrier = Mbarrier{};
    barrier->offset = offset;
    barrier->expected = barrier->pending = count;
    barrier->arriving.assign(w.clock.size(), 0);
    barrier->completed.assign(w.clock.size(), 0);
  }
  return Signal::kNext;
}

Signal Inval(const Instruction& i, Warp& w, uint32_t lanes) {
  uint64_t addresses[kLanes];
  LaneAddresses(i, w, 1, addresses);
  for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
    const int l = __builtin_ctz(rest);
    Block* owner = w.block;
    Mbarrier* barrier = FindMbarrier(i, w, l, addresses[l], false, &owner);
    if (barrier == nullptr) return Signal::kFault;
    *barrier = owner->mbarriers->barriers.back();
    owner->mbarriers->barriers.pop_back();
  }
  return Signal::kNext;
}

Signal ArriveOn(const Instruction& i, Warp& w, uint32_t lanes) {
  uint64_t addresses[kLanes];
  LaneAddresses(i, w, 1, addresses);
  for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
    const int l = __builtin_ctz(rest);
    Block* owner = w.block;
    Mbarrier* barrier = FindMbarrier(i, w, l, addresses[l], (i.flags & kCluster) != 0, &owner);
    if (barrier == nullptr) return Signal::kFault;
    const uint32_t argument = (i.flags & kHasCount) != 0 ? w.Read(i.operand[2])[l] : 1;
    if ((i.flags & kExpectTx) != 0) barrier->pending_bytes += argument;
    const uint64_t state = StateOf(*barrier);
    if ((i.flags & kDrop) != 0 && barrier->expected > 0) --barrier->expected;
    const Signal signal = Arrive(i, w, l, *owner, *barrier, (i.flags & kExpectTx) != 0 ? 1 : argument);
    if (signal != Signal::kNext) return signal;
    if (i.operand[0] != Instruction::kNoSlot) w.Write<uint64_t>(i.operand[0])[l] = state;
  }
  w.Tick();
  return Signal::kNext;
}

// expect_tx and complete_tx without an arrival. small: the sign.
Signal ChangeBytes(const Instruction& i, Warp& w, uint32_t lanes) {
  uint64_t addresses[kLanes];
  LaneAddresses(i, w, 1, addresses);
  for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
    const int l = __builtin_ctz(rest);
    Block* owner = w.block;
    Mbarrier* barrier = FindMbarrier(i, w, l, addresses[l], (i.flags & kCluster) != 0, &owner);
    if (barrier == nullptr) return Signal::kFault;
    const int64_t bytes = w.Read(i.operand[2])[l];
    barrier->pending_bytes += i.small != 0 ? -bytes : bytes;
    if (i.small != 0) CompletePhase(*owner, *barrier);
  }
  return Signal::kNext;
}

// operand: predicate, address, parity or state
Signal Wait(const Instruction& i, Warp& w, uint32_t lanes) {
  uint64_t addresses[kLanes];
  LaneAddresses(i, w, 1, addresses);
  const bool test = (i.flags & kTest) != 0;
  uint32_t done = 0;
  for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
    const int l = __builtin_ctz(rest);
    Block* owner = w.block;
    Mbarrier* barrier = FindMbarrier(i, w, l, addresses[l], false, &owner);
    if (barrier == nullptr) return Signal::kFault;
    const bool complete = (i.flags & kParity) != 0 ? (barrier->phase & 1) != (w.Read(i.operand[2])[l] & 1)
                                                   : barrier->phase != w.Read<uint64_t>(i.operand[2])[l];
    if (complete) {
      done |= 1u << l;
      Join(w.clock, barrier->completed);
    } else if (!test) {
      for (Path& path : w.paths) {
        if (path.lanes == w.path_lanes) path.waits_for = barrier->offset;
      }
      return Signal::kRetry;
    }
  }
  if (done != 0) w.Tick();
  uint32_t* predicate = w.Write(i.operand[0]);
  for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
    const int l = __builtin_ctz(rest);
    predicate[l] = (done >> l & 1) != 0 ? ~0u : 0u;
  }
  return done == lanes ? Signal::kNext : Signal::kYield;
}

Signal PendingCount(const Instruction& i, Warp& w, uint32_t lanes) {
  return w.Fail(i, FaultKind::kUnknownInstruction, __builtin_ctz(lanes), "an mbarrier's state carries no counts here");
}

// cp.async.mbarrier.arrive: an arrival once the thread's earlier cp.async are done. They are delivered and the arrival
// counted at once: the copies stay invisible to everybody who does not wait on the mbarrier, because nothing else
// orders them. Without .noinc the arrival is one more than the phase was told to expect.
Signal ArriveAfterCopies(const Instruction& i, Warp& w, uint32_t lanes) {
  uint64_t addresses[kLanes];
  LaneAddresses(i, w, 1, addresses);
  for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
    const int l = __builtin_ctz(rest);
    Block* owner = w.block;
    Mbarrier* barrier = FindMbarrier(i, w, l, addresses[l], false, &owner);
    if (barrier == nullptr) return Signal::kFault;
    w.copies->Finish(w, l);
    if ((i.flags & kNoIncrement) == 0) ++barrier->pending;
    const Signal signal = Arrive(i, w, l, *owner, *barrier, 1);
    if (signal != Signal::kNext) return signal;
  }
  w.Tick();
  return Signal::kNext;
}

Handler BindArrive(Binder& b) {
  Instruction& out = b.out();
  if (b.Has("noComplete")) return nullptr;
  out.flags = (b.Has("expect_tx") ? uint32_t{kExpectTx} : 0u) | (b.Part(1) == "arrive_drop" ? uint32_t{kDrop} : 0u);
  size_t next = 0;
  out.operand[0] = Instruction::kNoSlot;
  if (b.Operands() > 0 && b.At(0).kind != Operand::kAddress) {
    if (b.At(0).kind != Operand::kSink) out.operand[0] = b.Destination(b.At(0), 64);
    ++next;
  }
  if (next >= b.Operands()) return nullptr;
  const uint32_t options = out.flags;
  b.BindAddress(b.At(next++), 1);
  out.flags |= options | (b.Has("shared::cluster") ? uint32_t{kCluster} : 0u);
  if (next < b.Operands()) {
    out.flags |= kHasCount;
    out.operand[2] = b.Source(b.At(next++), 32);
  }
  if ((options & kExpectTx) != 0 && (out.flags & kHasCount) == 0) return nullptr;
  return next == b.Operands() ? &ArriveOn : nullptr;
}

}  // namespace

Handler BindMbarrier(Binder& b) {
  Instruction& out = b.out();
  out.kind = InstructionClass::kBarrier;
  if (b.Part(0) == "cp" && b.Part(1) == "async" && b.Part(2) == "mbarrier" && b.Operands() == 1) {
    b.BindAddress(b.At(0), 1);
    out.flags |= b.Has("noinc") ? uint32_t{kNoIncrement} : 0u;
    return &ArriveAfterCopies;
  }
  if (b.Part(0) != "mbarrier") return nullptr;
  const std::string_view what = b.Part(1);
  if (what == "init" && b.Operands() == 2) {
    b.BindAddress(b.At(0), 1);
    out.operand[2] = b.Source(b.At(1), 32);
    return &Init;
  }
  if (what == "inval" && b.Operands() == 1) return b.BindAddress(b.At(0), 1) ? &Inval : nullptr;
  if (what == "arrive" || what == "arrive_drop") return BindArrive(b);
  if ((what == "expect_tx" || what == "complete_tx") && b.Operands() == 2) {
    b.BindAddress(b.At(0), 1);
    out.flags |= b.Has("shared::cluster") ? uint32_t{kCluster} : 0u;
    out.operand[2] = b.Source(b.At(1), 32);
    out.small = what == "complete_tx";
    return &ChangeBytes;
  }
  if (what == "try_wait" || what == "test_wait") {
    if (b.Operands() != 3 && b.Operands() != 4) return nullptr;  // a fourth is a time limit
    const bool parity = b.Has("parity");
    out.operand[0] = b.Destination(b.At(0), 1);
    b.BindAddress(b.At(1), 1);
    out.operand[2] = b.Source(b.At(2), parity ? 32 : 64);
    out.flags |= (parity ? uint32_t{kParity} : 0u) | (what == "test_wait" ? uint32_t{kTest} : 0u);
    return &Wait;
  }
  return what == "pending_count" ? &PendingCount : nullptr;
}

}  // namespace tessera::vgpu
