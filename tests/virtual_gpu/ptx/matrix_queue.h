// wgmma in flight, per warp. A product is computed when the warp waits for it: until then its accumulators hold what
// they held before, and reading or writing them is a fault.
#pragma once

#include <vector>

#include "tests/virtual_gpu/ptx/warp.h"

namespace tessera::vgpu {

class MatrixQueue {
 public:
  struct Entry {
    const Instruction* instruction = nullptr;
    uint32_t pc = 0;
    bool add = false;       // scale-d
    uint64_t a = 0, b = 0;  // descriptors; a is unused when A is in registers
    Clock order, fenced;    // of the warp when it was issued
    uint64_t group = 0;
    bool computed = false;
  };

  // kNext, or a fault of `instruction` because of its registers.
  Signal Check(const Instruction& instruction, Warp& warp);
  void Add(Entry entry, Warp& warp);
  void Commit() { ++group_; }
  // All committed groups but the last `keep` are done.
  Signal Wait(Warp& warp, uint64_t keep);

 private:
  enum State : uint8_t { kFree, kAccumulator, kSource };
  Signal ComputeAll(Warp& warp);
  void Mark(Warp& warp);

  std::vector<Entry> entries_;
  std::vector<uint8_t> state_;  // per slot
  uint64_t group_ = 0;
};

// wgmma.cc: performs the product of this warp's 16 rows. A fault when shared memory was not ready.
Signal ComputeWgmma(Warp& warp, const MatrixQueue::Entry& entry);
// The slots of a wgmma.mma_async: accumulators, and A if it is in registers.
struct WgmmaSlots {
  const int32_t* accumulators;
  int accumulator_count;
  const int32_t* a;  // four, or null
};
WgmmaSlots SlotsOf(const Instruction& instruction);
bool IsWgmma(const Instruction& instruction);

}  // namespace tessera::vgpu
