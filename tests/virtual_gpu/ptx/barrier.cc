// bar.sync, bar.arrive, bar.red and their barrier.* names. Whole warps arrive; lanes that diverged are waited for.
#include "tests/virtual_gpu/ptx/binder.h"
#include "tests/virtual_gpu/ptx/schedule.h"

namespace tessera::vgpu {
namespace {

enum Operation : uint32_t { kSync, kArrive, kPopc, kAnd, kOr };
constexpr uint32_t kNegated = 8;
constexpr int32_t kNoCount = Instruction::kNoSlot;

uint32_t LiveWarps(const Block& block) {
  uint32_t warps = 0;
  for (const Warp& warp : block.warps) warps |= static_cast<uint32_t>(warp.live != 0) << warp.index;
  return warps;
}

bool Complete(const Block& block, const Barrier& barrier) {
  if (barrier.all) return (LiveWarps(block) & ~barrier.arrived_warps) == 0;
  return barrier.arrived_threads >= barrier.expected_threads;
}

void Release(Block& block, Barrier& barrier) {
  for (Warp& warp : block.warps) {
    if ((barrier.waiting_warps >> warp.index & 1) == 0) continue;
    Join(warp.clock, barrier.clock);
    warp.Tick();
    for (Path& path : warp.paths) {
      if (!path.in_barrier) continue;
      path.in_barrier = false;
      path.state = Path::kReady;
      // The reduction's result goes into the register of the instruction that waits.
      const Instruction& i = block.run->kernel->code[path.pc - 1];
      const uint32_t operation = i.flags & 7;
      if (operation == kPopc || operation == kAnd || operation == kOr) {
        const uint32_t value = operation == kPopc  ? barrier.reduction_count
                               : operation == kAnd ? (barrier.reduction_and != 0 ? ~0u : 0u)
                                                   : (barrier.reduction_or != 0 ? ~0u : 0u);
        for (int l = 0; l < kLanes; ++l) {
          if ((path.lanes >> l & 1) != 0) warp.Write(i.operand[0])[l] = value;
        }
      }
    }
  }
  barrier = Barrier{};
  ++block.wakeups;
}

// operand: result, barrier number, thread count, predicate
Signal Bar(const Instruction& i, Warp& w, uint32_t lanes) {
  if (lanes != w.live) return Signal::kWaitLanes;
  Block& block = *w.block;
  const int first = __builtin_ctz(lanes);
  const uint32_t number = w.Read(i.operand[1])[first];
  if (number >= block.barriers.size()) {
    return w.Fail(i, FaultKind::kBarrier, first, "barrier " + std::to_string(number) + "; allowed: 0 to 15");
  }
  Barrier& barrier = block.barriers[number];
  const bool all = i.operand[2] == kNoCount;
  const uint32_t expected = all ? 0 : w.Read(i.operand[2])[first];
  if (!all && (expected == 0 || expected % kLanes != 0)) {
    return w.Fail(i, FaultKind::kBarrier, first,
                  "a count of " + std::to_string(expected) + " threads; allowed: multiples of 32");
  }
  if (barrier.arrived_threads != 0 && (barrier.all != all || barrier.expected_threads != expected)) {
    const auto count = [](bool everybody, uint32_t threads) {
      return everybody ? std::string("every thread") : std::to_string(threads) + " threads";
    };
    return w.Fail(i, FaultKind::kBarrier, -1,
                  "barrier " + std::to_string(number) + " of " + count(all, expected) +
                      " is joined while warps wait in it for " + count(barrier.all, barrier.expected_threads));
  }
  if ((barrier.arrived_warps >> w.index & 1) != 0) {
    return w.Fail(i, FaultKind::kBarrier, -1,
                  "the warp arrives at barrier " + std::to_string(number) + " twice before it completes");
  }
  if (barrier.arrived_threads == 0) {
    barrier.all = all;
    barrier.expected_threads = expected;
    barrier.clock.assign(w.clock.size(), 0);
  }
  const uint32_t operation = i.flags & 7;
  if (operation >= kPopc) {
    const uint32_t* predicate = w.Read(i.operand[3]);
    for (int l = 0; l < kLanes; ++l) {
      if ((lanes >> l & 1) == 0) continue;
      const bool value = (predicate[l] != 0) != ((i.flags & kNegated) != 0);
      barrier.reduction_count += value;
      barrier.reduction_and &= value;
      barrier.reduction_or |= value;
    }
  }
  barrier.arrived_threads += kLanes;
  barrier.arrived_warps |= 1u << w.index;
  Join(barrier.clock, w.clock);
  w.Tick();
  if (operation != kArrive) barrier.waiting_warps |= 1u << w.index;
  if (operation == kArrive) {
    if (Complete(block, barrier)) Release(block, barrier);
    return Signal::kNext;
  }
  if (!Complete(block, barrier)) return Signal::kWaitBlock;
  // The last to arrive: sleep too, so that Release treats all alike.
  for (Path& path : w.paths) {
    if (path.lanes == w.path_lanes) {
      path.pc = w.pc + 1;
      path.state = Path::kAsleep;
      path.in_barrier = true;
    }
  }
  Release(block, barrier);
  return Signal::kNext;
}

}  // namespace

void WarpEnded(Block& block) {
  if (LiveWarps(block) == 0) return;
  for (Barrier& barrier : block.barriers) {
    if (barrier.all && barrier.waiting_warps != 0 && Complete(block, barrier)) Release(block, barrier);
  }
}

Handler BindBarrier(Binder& b) {
  const std::string_view name = b.Part(0);
  if ((name != "bar" && name != "barrier") || b.Part(1) == "warp" || b.Part(1) == "cluster" ||
      b.Part(1) == "cluster::arrive") {
    return nullptr;
  }
  Instruction& out = b.out();
  out.kind = InstructionClass::kBarrier;
  const bool red = b.Has("red");
  size_t next = 0;
  if (red) {
    out.flags = b.Has("popc") ? kPopc : b.Has("and") ? kAnd : kOr;
    if (b.Operands() < 3) return nullptr;
    out.operand[0] = b.Destination(b.At(next++), b.Has("popc") ? 32 : 1);
  } else {
    out.flags = b.Has("arrive") ? kArrive : kSync;
    if (!b.Has("arrive") && !b.Has("sync")) return nullptr;
  }
  if (next >= b.Operands()) return nullptr;
  out.operand[1] = b.Source(b.At(next++), 32);
  out.operand[2] = kNoCount;
  if (b.Operands() - next > (red ? 1u : 0u)) out.operand[2] = b.Source(b.At(next++), 32);
  if (red) {
    if (next >= b.Operands()) return nullptr;
    Operand predicate = b.At(next++);
    if (predicate.negated) out.flags |= kNegated;
    predicate.negated = false;
    out.operand[3] = b.Source(predicate, 1);
  }
  return next == b.Operands() ? &Bar : nullptr;
}

}  // namespace tessera::vgpu
