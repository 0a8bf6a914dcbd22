#include "runtime/engine/slots.h"

#include <cstring>
#include <mutex>
#include <utility>

namespace tessera {

StatusOr<SlotTable> SlotTable::Allocate(const RankProgram& program, DType dtype) {
  SlotTable table = Unbound(program, dtype, MemorySpace::kHost);
  table.owned_.resize(program.slots.size());
  for (size_t id = 0; id < program.slots.size(); ++id) {
    const Slot& slot = program.slots[id];
    if (slot.external) continue;
    TESSERA_ASSIGN_OR_RETURN(table.owned_[id], HostBuffer::Allocate(slot.bytes(), absl::StrCat("plan slot ", id)));
    table.data_[id] = table.owned_[id].data();
  }
  return table;
}

SlotTable SlotTable::Unbound(const RankProgram& program, DType dtype, MemorySpace space) {
  SlotTable table;
  table.dtype_ = dtype;
  table.space_ = space;
  table.slots_ = program.slots;
  table.data_.resize(program.slots.size(), nullptr);
  return table;
}

int64_t SlotTable::RowBytes(SlotId id) const {
  const Slot& slot = slots_[id];
  return int64_t{slot.heads.size()} * slot.width * slot.element_bytes;
}

int64_t SlotTable::RegionBytes(const Region& region) const {
  const Slot& slot = slots_[region.slot];
  return region.rows.size() * region.heads.size() * slot.width * slot.element_bytes;
}

std::byte* SlotTable::RegionData(const Region& region) const {
  const Slot& slot = slots_[region.slot];
  const int64_t first_head = region.heads.begin - slot.heads.begin;
  return data_[region.slot] + region.rows.begin * RowBytes(region.slot) + first_head * slot.width * slot.element_bytes;
}

TensorView SlotTable::View(SlotId id) const {
  const Slot& slot = slots_[id];
  const bool single =
      slot.element_bytes == 4;  // all slots but the caller's dtype (fp64: with its accumulators) are fp32
  TensorView view =
      TensorView::Dense(data_[id], single ? DType::kFloat32 : dtype_, slot.rows, slot.heads.size(), slot.width);
  view.space = space_;
  return view;
}

// Visits the contiguous runs of a region in row order.
template <typename Visit>
void SlotTable::ForEachRun(const Region& region, Visit visit) const {
  const Slot& slot = slots_[region.slot];
  const int64_t head_bytes = int64_t{slot.width} * slot.element_bytes;
  const int64_t row_bytes = RowBytes(region.slot);
  std::byte* first = RegionData(region);
  if (region.heads == slot.heads) {
    visit(first, region.rows.size() * row_bytes);
    return;
  }
  for (int64_t row = 0; row < region.rows.size(); ++row)
    visit(first + row * row_bytes, region.heads.size() * head_bytes);
}

int64_t SlotTable::Pack(const Region& region, std::byte* packed) const {
  const std::byte* begin = packed;
  ForEachRun(region, [&](const std::byte* run, int64_t bytes) {
    if (bytes > 0) std::memcpy(packed, run, bytes);
    packed += bytes;
  });
  return packed - begin;
}

int64_t SlotTable::Unpack(const Region& region, const std::byte* packed) const {
  const std::byte* begin = packed;
  ForEachRun(region, [&](std::byte* run, int64_t bytes) {
    if (bytes > 0) std::memcpy(run, packed, bytes);
    packed += bytes;
  });
  return packed - begin;
}

void SlotTable::Copy(const Region& from, const Region& to) const {
  const int64_t rows = from.rows.size();
  for (int64_t row = 0; row < rows; ++row) {
    Region source = from;
    source.rows = {from.rows.begin + row, from.rows.begin + row + 1};
    Region target = to;
    target.rows = {to.rows.begin + row, to.rows.begin + row + 1};
    // One row of consecutive heads is one run on either side.
    ForEachRun(source, [&](const std::byte* run, int64_t) { Unpack(target, run); });
  }
}

namespace {

template <typename Memory>
void Keep(Memory memory) {
  static std::mutex mutex;
  static auto* const kept = new std::vector<Memory>;
  const std::lock_guard lock(mutex);
  kept->push_back(std::move(memory));
}

}  // namespace

void KeepForGood(SlotTable slots) {
  Keep(std::move(slots));
}
void KeepForGood(HostBuffer buffer) {
  Keep(std::move(buffer));
}

}  // namespace tessera
