// cp.async.bulk of plain bytes, its groups, and the reductions cp.reduce.async.bulk.
#include "tests/virtual_gpu/ptx/bulk_copies.h"
#include "tests/virtual_gpu/ptx/bulk_operands.h"
#include "tests/virtual_gpu/ptx/mbarrier_table.h"
#include "tests/virtual_gpu/ptx/memory_access.h"

namespace tessera::vgpu {

Signal BulkPiece(const Instruction& i, Warp& w, int lane, uint64_t shared, uint64_t global, uint32_t bytes, bool load,
                 Block* owner, BulkCopy* copy) {
  Block* block = w.block;
  uint8_t* at = SharedBytes(i, w, lane, shared, bytes, true, &block);
  if (at == nullptr) return Signal::kFault;
  if (load && block != owner)
    at = at - reinterpret_cast<uint8_t*>(block->shared) + reinterpret_cast<uint8_t*>(owner->shared);
  if (!InGlobal(*w.block->run, global, bytes)) return GlobalFault(i, w, lane, global, bytes);
  uint8_t* outside = reinterpret_cast<uint8_t*>(global);
  copy->pieces.push_back(load ? BulkCopy::Piece{at, outside, bytes} : BulkCopy::Piece{outside, at, bytes});
  return Signal::kNext;
}

namespace {

// operand: shared address, global address, bytes, mbarrier, multicast mask; small: BulkCopy::Kind
Signal Bulk(const Instruction& i, Warp& w, uint32_t lanes) {
  const bool load = i.small == BulkCopy::kLoad;
  Execution& run = *w.block->run;
  for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
    const int l = __builtin_ctz(rest);
    const uint64_t shared = w.Read(i.operand[0])[l], global = w.Read<uint64_t>(i.operand[1])[l];
    const uint32_t bytes = w.Read(i.operand[2])[l];
    if (bytes == 0 || bytes % 16 != 0 || shared % 16 != 0 || global % 16 != 0) {
      return w.Fail(i, FaultKind::kMisaligned, l,
                    "addresses and size (" + std::to_string(bytes) + ") must be multiples of 16 bytes");
    }
    const auto fill = [&](Block* owner, BulkCopy* copy) {
      copy->kind = static_cast<BulkCopy::Kind>(i.small);
      return BulkPiece(i, w, l, shared, global, bytes, load, owner, copy);
    };
    const Signal signal =
        load ? BeginLoads(i, w, l, shared, bytes, i.operand[3], i.operand[4], fill) : BeginStore(i, w, l, fill);
    if (signal != Signal::kNext) return signal;
    (load ? run.counters.global_read_bytes : run.counters.global_written_bytes) += bytes;
    (load ? run.counters.shared_written_bytes : run.counters.shared_read_bytes) += bytes;
    run.counters.bulk_copy_bytes += bytes;
  }
  return Signal::kNext;
}

Signal Commit(const Instruction&, Warp& w, uint32_t lanes) {
  for (int l = 0; l < kLanes; ++l) w.block->cluster->bulk->groups[w.agent][l] += lanes >> l & 1;
  return Signal::kNext;
}

Signal WaitGroup(const Instruction& i, Warp& w, uint32_t lanes) {
  for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
    const Signal signal = WaitBulkGroups(w, __builtin_ctz(rest), static_cast<uint64_t>(i.immediate));
    if (signal != Signal::kNext) return signal;
  }
  w.Tick();
  return Signal::kNext;
}

Signal Nothing(const Instruction&, Warp&, uint32_t) {
  return Signal::kNext;
}

}  // namespace

int32_t PlainAddress(Binder& b, const Operand& operand, int bits) {
  if (operand.kind != Operand::kAddress || operand.parts.empty() || operand.offset != 0) {
    b.Refuse();
    return Instruction::kNoSlot;
  }
  const int have = b.RegisterBits(operand.parts[0]);
  if (have != 0 && have != bits) b.Refuse();
  return b.Source(operand.parts[0], bits);
}

int BulkKind(const Binder& b, bool load) {
  if (load) return b.Part(1) == "reduce" ? -1 : BulkCopy::kLoad;
  if (b.Part(1) != "reduce") return BulkCopy::kStore;
  if (!b.Has("add")) return -1;
  if (b.Has("f32")) return BulkCopy::kAdd32;
  if (b.Has("f16")) return BulkCopy::kAdd16;
  return b.Has("bf16") ? BulkCopy::kAddB16 : -1;
}

Handler BindBulkCopy(Binder& b) {
  if (b.Part(0) != "cp" || !b.Has("bulk")) return nullptr;
  Instruction& out = b.out();
  out.kind = InstructionClass::kAsyncCopy;
  if (b.Has("prefetch")) return &Nothing;
  if (b.Has("commit_group")) return &Commit;
  if (b.Has("wait_group") && b.Operands() == 1 && b.At(0).kind == Operand::kImmediate) {
    out.immediate = static_cast<int64_t>(b.At(0).bits);
    return &WaitGroup;
  }
  if (b.Has("tensor")) return BindTensorCopy(b);
  // Load: [shared], [global], bytes, [mbarrier] {, mask} {, policy}. Store: [global], [shared], bytes {, policy}.
  const size_t spaces = b.Part(1) == "reduce" ? 4 : 3;
  const bool load = b.Part(spaces).substr(0, 6) == "shared" && b.Part(spaces + 1) == "global";
  const bool store = b.Part(spaces) == "global" && b.Part(spaces + 1).substr(0, 6) == "shared";
  const int kind = BulkKind(b, load);
  if ((!load && !store) || kind < 0 || b.Has("cp_mask")) return nullptr;
  const size_t expected = (load ? 4 : 3) + (b.Has("multicast::cluster") ? 1 : 0) + (b.Has("L2::cache_hint") ? 1 : 0);
  if (b.Operands() != expected) return nullptr;
  out.small = static_cast<uint8_t>(kind);
  out.operand[0] = PlainAddress(b, b.At(load ? 0 : 1), 32);
  out.operand[1] = PlainAddress(b, b.At(load ? 1 : 0), 64);
  out.operand[2] = b.Source(b.At(2), 32);
  out.operand[3] = load ? PlainAddress(b, b.At(3), 32) : Instruction::kNoSlot;
  out.operand[4] = b.Has("multicast::cluster") ? b.Source(b.At(4), 16) : Instruction::kNoSlot;
  return &Bulk;
}

}  // namespace tessera::vgpu
