#include "tests/virtual_gpu/ptx/matrix_queue.h"

#include <algorithm>

namespace tessera::vgpu {

void MatrixQueue::Mark(Warp& warp) {
  const Kernel& kernel = *warp.block->run->kernel;
  state_.assign(static_cast<size_t>(kernel.slots), kFree);
  for (const Entry& entry : entries_) {
    const WgmmaSlots slots = SlotsOf(*entry.instruction);
    for (int s = 0; slots.a != nullptr && s < 4; ++s) {
      if (slots.a[s] >= 0) state_[slots.a[s]] = kSource;
    }
    for (int s = 0; s < slots.accumulator_count; ++s) state_[slots.accumulators[s]] = kAccumulator;
  }
  warp.matrices_in_flight = !entries_.empty();
}

void MatrixQueue::Add(Entry entry, Warp& warp) {
  entry.group = group_;
  entries_.push_back(std::move(entry));
  Mark(warp);
}

Signal MatrixQueue::ComputeAll(Warp& warp) {
  for (Entry& entry : entries_) {
    if (entry.computed) continue;
    const Signal signal = ComputeWgmma(warp, entry);
    if (signal != Signal::kNext) return signal;
    entry.computed = true;
  }
  return Signal::kNext;
}

Signal MatrixQueue::Wait(Warp& warp, uint64_t keep) {
  size_t done = 0;
  while (done < entries_.size() && entries_[done].group + keep < group_) {
    if (!entries_[done].computed) {
      const Signal signal = ComputeWgmma(warp, entries_[done]);
      if (signal != Signal::kNext) return signal;
    }
    ++done;
  }
  entries_.erase(entries_.begin(), entries_.begin() + static_cast<ptrdiff_t>(done));
  Mark(warp);
  return Signal::kNext;
}

Signal MatrixQueue::Check(const Instruction& instruction, Warp& warp) {
  const int32_t* touched = warp.block->run->kernel->touched.data() + instruction.touched;
  const bool wgmma = IsWgmma(instruction);
  const bool move = instruction.kind == InstructionClass::kMove;
  for (int s = 0; s < instruction.reads + instruction.writes; ++s) {
    if (touched[s] < 0) continue;
    const bool write = s >= instruction.reads;
    const uint8_t state = state_[touched[s]];
    if (state == kFree || (state == kSource && !write)) continue;
    if (wgmma && state == kAccumulator) {
      const WgmmaSlots slots = SlotsOf(instruction);
      const int32_t* end = slots.accumulators + slots.accumulator_count;
      if (std::find(slots.accumulators, end, touched[s]) != end) continue;
    }
    // nvcc copies registers in front of inline assembly, and ptxas takes the copies out again: a plain copy is let
    // through, and its target counts as in flight too.
    if (move && !write) {
      const Signal signal = ComputeAll(warp);
      if (signal != Signal::kNext) return signal;
      for (int t = instruction.reads; t < instruction.reads + instruction.writes; ++t)
        state_[touched[t]] = kAccumulator;
      return Signal::kNext;
    }
    for (const Entry& entry : entries_) {
      return warp.Fail(
          instruction, FaultKind::kMissingWait, -1,
          std::string(write ? "writes" : "reads") + " a register that belongs to a wgmma in flight, issued at line " +
              std::to_string(entry.instruction->source->line) + ": a wgmma.wait_group is missing or too short");
    }
  }
  return Signal::kNext;
}

}  // namespace tessera::vgpu
