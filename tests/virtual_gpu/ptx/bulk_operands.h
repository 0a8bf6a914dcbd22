// What plain and tensor bulk copies have in common.
#pragma once

#include "tests/virtual_gpu/ptx/bulk_copies.h"
#include "tests/virtual_gpu/ptx/mbarrier_table.h"
#include "tests/virtual_gpu/ptx/memory_access.h"

namespace tessera::vgpu {

Handler BindTensorCopy(Binder& b);

// The register in [...]; an offset or another width is refused.
int32_t PlainAddress(Binder& b, const Operand& operand, int bits);

// BulkCopy::Kind by the opcode, -1 when it is not known.
int BulkKind(const Binder& b, bool load);

// A contiguous piece between global memory and a window address, checked. Loads go to `owner`'s shared memory.
Signal BulkPiece(const Instruction& i, Warp& w, int lane, uint64_t shared, uint64_t global, uint32_t bytes, bool load,
                 Block* owner, BulkCopy* copy);

template <class Fill>
Signal BeginStore(const Instruction& i, Warp& w, int lane, const Fill& fill) {
  BulkCopy copy;
  const Signal signal = fill(w.block, &copy);
  return signal == Signal::kNext ? BeginBulkCopy(i, w, lane, std::move(copy)) : signal;
}

// One load per destination: the block of the address, or every block of the multicast mask at the same offset, with
// the mbarrier at the same offset too.
template <class Fill>
Signal BeginLoads(const Instruction& i, Warp& w, int lane, uint64_t shared, uint32_t bytes, int32_t mbarrier_slot,
                  int32_t mask_slot, const Fill& fill) {
  Cluster& cluster = *w.block->cluster;
  Block* addressed = w.block;
  if (SharedBytes(i, w, lane, shared, 1, true, &addressed) == nullptr) return Signal::kFault;
  const uint64_t barrier_address = w.Read(mbarrier_slot)[lane];
  Block* barrier_owner = w.block;
  const uint8_t* barrier_at = SharedBytes(i, w, lane, barrier_address, 8, true, &barrier_owner);
  if (barrier_at == nullptr) return Signal::kFault;
  const uint32_t barrier_offset =
      static_cast<uint32_t>(barrier_at - reinterpret_cast<const uint8_t*>(barrier_owner->shared));
  const uint32_t mask = mask_slot == Instruction::kNoSlot ? 1u << addressed->rank : w.Read(mask_slot)[lane] & 0xffff;
  if (mask_slot == Instruction::kNoSlot && barrier_owner != addressed) {
    return w.Fail(i, FaultKind::kBarrier, lane, "the mbarrier and the destination must be in the same block");
  }
  for (auto& block : cluster.blocks) {
    if ((mask >> block->rank & 1) == 0) continue;
    if (block->mbarriers->Find(barrier_offset) == nullptr) {
      return w.Fail(
          i, FaultKind::kBarrier, lane,
          "no mbarrier was initialised at its address in block " + std::to_string(block->rank) + " of the cluster");
    }
    BulkCopy copy;
    const Signal filled = fill(block.get(), &copy);
    if (filled != Signal::kNext) return filled;
    copy.destination = block.get();
    copy.mbarrier = barrier_offset;
    copy.tx_bytes = bytes;
    const Signal signal = BeginBulkCopy(i, w, lane, std::move(copy));
    if (signal != Signal::kNext) return signal;
  }
  return Signal::kNext;
}

}  // namespace tessera::vgpu
