#include "tests/virtual_gpu/ptx/bulk_copies.h"

#include <atomic>
#include <cstring>

#include "tests/virtual_gpu/ptx/half_float.h"
#include "tests/virtual_gpu/ptx/mbarrier_table.h"
#include "tests/virtual_gpu/ptx/shared_shadow.h"

namespace tessera::vgpu {
namespace {

uint32_t OffsetIn(const Block& block, const uint8_t* at) {
  return static_cast<uint32_t>(at - reinterpret_cast<const uint8_t*>(block.shared));
}

SharedShadow::Access AsyncAccess(const BulkCopy& copy, const Block& block) {
  SharedShadow::Access access;
  access.agent = block.warps.back().agent + 1;
  access.lane = SharedShadow::kManyLanes;
  access.order = &copy.order;
  access.epoch = copy.stamp;
  access.base = block.run->clock_base;
  access.pc = copy.pc;
  if (copy.kind != BulkCopy::kLoad) {
    access.fenced = &copy.fenced;
    access.fenced_by_self = &block.cluster->fenced_by_self;
  }
  return access;
}

Signal Report(const BulkCopy& copy, const Block& block, const SharedShadow::Access& access, uint32_t offset,
              uint32_t bytes, bool write) {
  auto problem = block.shadow->Describe(access, offset, bytes, write, *block.run->kernel);
  return copy.issuer->Fail(*copy.instruction, problem.kind, copy.lane, "the asynchronous copy: " + problem.what);
}

template <class T, class Add>
void AddTo(uint8_t* to, const uint8_t* from, uint32_t bytes, const Add& add) {
  for (uint32_t at = 0; at < bytes; at += sizeof(T)) {
    T value;
    std::memcpy(&value, from + at, sizeof(T));
    std::atomic_ref<T> cell(*reinterpret_cast<T*>(to + at));
    T old = cell.load();
    while (!cell.compare_exchange_weak(old, add(old, value))) {
    }
  }
}

void Move(const BulkCopy& copy, const BulkCopy::Piece& piece) {
  switch (copy.kind) {
    case BulkCopy::kAdd32:
      AddTo<uint32_t>(piece.to, piece.from, piece.bytes, [](uint32_t a, uint32_t b) {
        return F32<false>::Write(F32<false>::Read(a) + F32<false>::Read(b));
      });
      break;
    case BulkCopy::kAdd16:
      AddTo<uint16_t>(piece.to, piece.from, piece.bytes,
                      [](uint16_t a, uint16_t b) { return static_cast<uint16_t>(ToF16(FromF16(a) + FromF16(b))); });
      break;
    case BulkCopy::kAddB16:
      AddTo<uint16_t>(piece.to, piece.from, piece.bytes,
                      [](uint16_t a, uint16_t b) { return static_cast<uint16_t>(ToBf16(FromBf16(a) + FromBf16(b))); });
      break;
    default:
      if (piece.from == nullptr) {
        std::memset(piece.to, 0, piece.bytes);
      } else {
        std::memcpy(piece.to, piece.from, piece.bytes);
      }
  }
}

bool Deliver(const BulkCopy& copy) {
  Block& block = copy.kind == BulkCopy::kLoad ? *copy.destination : *copy.issuer->block;
  const SharedShadow::Access access = AsyncAccess(copy, block);
  for (const BulkCopy::Piece& piece : copy.pieces) {
    if (copy.kind != BulkCopy::kLoad && block.shadow != nullptr) {
      const uint32_t offset = OffsetIn(block, piece.from);
      // What was written after the copy was issued is not ordered before it: the source was reused too early.
      if (!block.shadow->Read(access, offset, piece.bytes)) {
        Report(copy, block, access, offset, piece.bytes, false);
        return false;
      }
    }
    Move(copy, piece);
    if (copy.kind == BulkCopy::kLoad && block.shadow != nullptr) {
      block.shadow->End(OffsetIn(block, piece.to), piece.bytes);
    }
  }
  if (copy.kind != BulkCopy::kLoad) return true;
  Mbarrier* barrier = block.mbarriers->Find(copy.mbarrier);
  if (barrier == nullptr) {
    copy.issuer->Fail(*copy.instruction, FaultKind::kBarrier, copy.lane,
                      "its mbarrier was invalidated while the copy was in flight");
    return false;
  }
  barrier->pending_bytes -= copy.tx_bytes;
  barrier->arriving[access.agent] = std::max(barrier->arriving[access.agent], copy.stamp);
  CompletePhase(block, *barrier);
  return true;
}

}  // namespace

Signal BeginBulkCopy(const Instruction& i, Warp& w, int lane, BulkCopy copy) {
  Block& block = copy.kind == BulkCopy::kLoad ? *copy.destination : *w.block;
  copy.issuer = &w;
  copy.lane = lane;
  copy.instruction = &i;
  copy.pc = w.pc;
  copy.order = w.clock;
  copy.stamp = ++block.async_clock;
  BulkCopies& bulk = *w.block->cluster->bulk;
  if (copy.kind != BulkCopy::kLoad) {
    copy.group = bulk.groups[w.agent][lane];
    copy.fenced = w.fenced;
  } else if (block.shadow != nullptr) {
    const SharedShadow::Access access = AsyncAccess(copy, block);
    for (const BulkCopy::Piece& piece : copy.pieces) {
      const uint32_t offset = OffsetIn(block, piece.to);
      if (!block.shadow->Written(access, offset, piece.bytes, false))
        return Report(copy, block, access, offset, piece.bytes, true);
    }
    for (const BulkCopy::Piece& piece : copy.pieces) block.shadow->Begin(OffsetIn(block, piece.to), piece.bytes, w.pc);
  }
  bulk.in_flight.push_back(std::move(copy));
  // Later accesses of this warp are not ordered before the copy.
  w.Tick();
  return Signal::kNext;
}

Signal WaitBulkGroups(Warp& w, int lane, uint64_t keep) {
  BulkCopies& bulk = *w.block->cluster->bulk;
  for (size_t c = 0; c < bulk.in_flight.size();) {
    const BulkCopy& copy = bulk.in_flight[c];
    const bool mine = copy.kind != BulkCopy::kLoad && copy.issuer == &w && copy.lane == lane;
    if (!mine || copy.group + keep >= bulk.groups[w.agent][lane]) {
      ++c;
      continue;
    }
    const BulkCopy done = std::move(bulk.in_flight[c]);
    bulk.in_flight.erase(bulk.in_flight.begin() + c);
    if (!Deliver(done)) return Signal::kFault;
    uint32_t& known = w.clock[w.block->warps.back().agent + 1];
    known = std::max(known, done.stamp);
  }
  return Signal::kNext;
}

bool DeliverBulkCopy(Execution&, Cluster& cluster) {
  if (cluster.bulk->in_flight.empty()) return false;
  const BulkCopy copy = std::move(cluster.bulk->in_flight.back());
  cluster.bulk->in_flight.pop_back();
  return Deliver(copy);
}

bool EndOfBulkCopies(Execution&, Cluster& cluster) {
  while (!cluster.bulk->in_flight.empty()) {
    const BulkCopy copy = std::move(cluster.bulk->in_flight.front());
    cluster.bulk->in_flight.pop_front();
    // A block's shared memory goes with it: neither a load nor a store may outlive its block.
    copy.issuer->Fail(*copy.instruction, FaultKind::kMissingWait, copy.lane,
                      "the block ends while this copy is in flight");
    return false;
  }
  return true;
}

}  // namespace tessera::vgpu
