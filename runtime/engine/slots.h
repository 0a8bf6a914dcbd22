// The memory behind a program's slots. Internal to the engine.
#pragma once

#include <vector>

#include "partition/plan.h"
#include "runtime/base/status.h"
#include "runtime/base/tensor.h"
#include "runtime/device/buffer.h"

namespace tessera {

class SlotTable {
 public:
  // Allocates every slot that is not external, in host memory.
  static StatusOr<SlotTable> Allocate(const RankProgram& program, DType dtype);
  // No slot has memory: the caller binds all of them, to memory in `space`.
  static SlotTable Unbound(const RankProgram& program, DType dtype, MemorySpace space);

  void Bind(SlotId id, void* data) { data_[id] = static_cast<std::byte*>(data); }
  const Slot& slot(SlotId id) const { return slots_[id]; }
  std::byte* data(SlotId id) const { return data_[id]; }
  // Dense view of a whole slot.
  TensorView View(SlotId id) const;
  int64_t RowBytes(SlotId id) const;
  int64_t RegionBytes(const Region& region) const;
  // First byte of a region; the rest follows without gaps when it has all heads of its slot, or one row.
  std::byte* RegionData(const Region& region) const;

  // Host memory only: copies a region to or from packed bytes; returns the number of bytes.
  int64_t Pack(const Region& region, std::byte* packed) const;
  int64_t Unpack(const Region& region, const std::byte* packed) const;
  // Copies between regions of equal shape.
  void Copy(const Region& from, const Region& to) const;

 private:
  template <typename Visit>
  void ForEachRun(const Region& region, Visit visit) const;

  DType dtype_ = DType::kFloat32;
  MemorySpace space_ = MemorySpace::kHost;
  std::vector<Slot> slots_;
  std::vector<std::byte*> data_;
  std::vector<HostBuffer> owned_;
};

// Hold on to the memory of a failed run for good. Messages may still be under way, and a transport may write to slots
// until the communicator is gone; the job is about to end, so this costs nothing and saves its error message from a
// crash.
void KeepForGood(SlotTable slots);
void KeepForGood(HostBuffer buffer);

}  // namespace tessera
