// Branches, returns, traps, and instructions that have no effect here.
#include "tests/virtual_gpu/ptx/binder.h"

namespace tessera::vgpu {
namespace {

Signal Branch(const Instruction&, Warp&, uint32_t) {
  return Signal::kBranch;
}
Signal Return(const Instruction&, Warp&, uint32_t) {
  return Signal::kReturn;
}
Signal Exit(const Instruction&, Warp&, uint32_t) {
  return Signal::kExit;
}
Signal Nothing(const Instruction&, Warp&, uint32_t) {
  return Signal::kNext;
}
Signal Sleep(const Instruction&, Warp&, uint32_t) {
  return Signal::kYield;
}

Signal Trap(const Instruction& i, Warp& w, uint32_t lanes) {
  return w.Fail(i, FaultKind::kTrap, __builtin_ctz(lanes), "the kernel trapped");
}

Signal IndexedBranch(const Instruction& i, Warp& w, uint32_t lanes) {
  const std::vector<int32_t>& table = w.block->run->kernel->branch_tables[i.immediate];
  const uint32_t* index = w.Read(i.operand[0]);
  for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
    const int l = __builtin_ctz(rest);
    if (index[l] >= table.size()) {
      return w.Fail(i, FaultKind::kTrap, l,
                    "index " + std::to_string(index[l]) + " into a branch table of " + std::to_string(table.size()));
    }
    w.lane_target[l] = static_cast<uint32_t>(table[index[l]]);
  }
  return Signal::kScatter;
}

// All global writes are visible at once, in the order of execution, so fences within a device do nothing. prefetch and
// the cache hints of createpolicy never change results; griddepcontrol (programmatic dependent launch) neither, because
// launches of one stream never overlap here.
constexpr std::string_view kNoEffect[] = {"prefetch", "prefetchu",  "griddepcontrol", "applypriority",
                                          "discard",  "setmaxnreg", "pmevent",        "nop"};

}  // namespace

Handler BindControl(Binder& b) {
  const std::string_view name = b.Part(0);
  b.out().kind = InstructionClass::kControl;
  if (name == "bra") return &Branch;
  if (name == "ret") return &Return;
  if (name == "exit") return &Exit;
  if (name == "trap" || name == "brkpt") return &Trap;
  if (name == "nanosleep") return &Sleep;
  if (name == "brx") {
    b.out().operand[0] = b.Source(b.At(0), 32);
    return &IndexedBranch;
  }
  if (name == "createpolicy") {
    b.out().operand[0] = b.Destination(b.At(0), 64);
    return &Nothing;
  }
  for (std::string_view other : kNoEffect) {
    if (name == other) return &Nothing;
  }
  return nullptr;
}

}  // namespace tessera::vgpu
