// cp.async.bulk.tensor and its reductions: boxes of a tensor, by a tensor map.
#include <algorithm>

#include "tests/virtual_gpu/ptx/bulk_operands.h"
#include "tests/virtual_gpu/ptx/swizzle.h"
#include "tests/virtual_gpu/ptx/tensor_map.h"

namespace tessera::vgpu {
namespace {

constexpr uint32_t kChunk = 16;  // swizzling moves whole chunks
constexpr uint32_t kSharedAlign = 128;

// Calls visit(shared address of a chunk's valid part or of its zeros, global address or 0, bytes) for the whole box.
template <class Visit>
Signal ForEachPart(const TensorMap& map, const int32_t* at, uint32_t shared, const Visit& visit) {
  uint32_t index[TensorMap::kMaxRank] = {};
  const uint32_t row_bytes = map.box[0] * map.element_bytes;
  uint32_t row = shared;
  for (;;) {
    bool inside = true;
    uint64_t line = map.base;
    for (int d = 1; d < map.rank; ++d) {
      const int64_t x = int64_t{at[d]} + index[d];
      inside &= x >= 0 && x < map.extent[d];
      line += static_cast<uint64_t>(x) * map.stride_bytes[d - 1];
    }
    for (uint32_t chunk = 0; chunk < row_bytes; chunk += kChunk) {
      const uint32_t to = Swizzled(row + chunk, map.swizzle);
      const int64_t first = int64_t{at[0]} + chunk / map.element_bytes;
      const int64_t count = std::min(kChunk, row_bytes - chunk) / map.element_bytes;
      const int64_t from = std::clamp<int64_t>(-first, 0, count);
      const int64_t end = inside ? std::clamp<int64_t>(map.extent[0] - first, from, count) : from;
      const auto part = [&](int64_t begin, int64_t stop, bool valid) {
        if (begin >= stop) return Signal::kNext;
        return visit(to + static_cast<uint32_t>(begin) * map.element_bytes,
                     valid ? line + static_cast<uint64_t>((first + begin) * map.element_bytes) : 0,
                     static_cast<uint32_t>(stop - begin) * map.element_bytes);
      };
      Signal signal = part(0, from, false);
      if (signal == Signal::kNext) signal = part(from, end, true);
      if (signal == Signal::kNext) signal = part(end, count, false);
      if (signal != Signal::kNext) return signal;
    }
    row += row_bytes;
    int d = 1;
    for (; d < map.rank && ++index[d] == map.box[d]; ++d) index[d] = 0;
    if (d >= map.rank) return Signal::kNext;
  }
}

uint32_t BoxBytes(const TensorMap& map) {
  uint32_t bytes = map.element_bytes;
  for (int d = 0; d < map.rank; ++d) bytes *= map.box[d];
  return bytes;
}

Signal CheckMap(const Instruction& i, Warp& w, int lane, const TensorMap& map, int rank, uint64_t shared) {
  if (map.magic != TensorMap::kMagic) {
    return w.Fail(i, FaultKind::kTrap, lane,
                  "the descriptor is no tensor map (was it encoded, and is its address right?)");
  }
  if (map.rank != rank) {
    return w.Fail(
        i, FaultKind::kTrap, lane,
        "a tensor map of rank " + std::to_string(map.rank) + " in an instruction of rank " + std::to_string(rank));
  }
  for (int d = 0; d < rank; ++d) {
    if (map.element_stride[d] != 1)
      return w.Fail(i, FaultKind::kUnknownInstruction, lane, "element strides other than 1 are not known");
  }
  if (map.fill_nan != 0)
    return w.Fail(i, FaultKind::kUnknownInstruction, lane, "out-of-bounds fill with NaN is not known");
  if (map.box[0] * map.element_bytes % kChunk != 0) {
    return w.Fail(i, FaultKind::kMisaligned, lane, "rows of the box must be multiples of 16 bytes");
  }
  if (shared % kSharedAlign != 0) {
    return w.Fail(i, FaultKind::kMisaligned, lane, "the shared address must be a multiple of 128 bytes");
  }
  return Signal::kNext;
}

// operand: shared address, map, mbarrier, mask; more: coordinates; flags: rank; small: BulkCopy::Kind
Signal Tensor(const Instruction& i, Warp& w, uint32_t lanes) {
  const bool load = i.small == BulkCopy::kLoad;
  const int rank = static_cast<int>(i.flags);
  Execution& run = *w.block->run;
  for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
    const int l = __builtin_ctz(rest);
    const uint64_t shared = w.Read(i.operand[0])[l], address = w.Read<uint64_t>(i.operand[1])[l];
    uint64_t addresses[kLanes] = {};
    addresses[l] = address;
    Pointers pointers;
    if (address % 64 != 0)
      return w.Fail(i, FaultKind::kMisaligned, l, "a tensor map must be at a multiple of 64 bytes");
    Signal signal = Signal::kNext;
    for (uint32_t part = 0; part < sizeof(TensorMap) && signal == Signal::kNext; part += 64) {
      addresses[l] = address + part;
      signal = Resolve(i, w, 1u << l, Space::kGeneric, Use::kRead, 64, addresses, &pointers);
    }
    if (signal != Signal::kNext) return signal;
    TensorMap map;
    std::memcpy(static_cast<void*>(&map), reinterpret_cast<const void*>(address), sizeof map);
    signal = CheckMap(i, w, l, map, rank, shared);
    if (signal != Signal::kNext) return signal;
    int32_t at[TensorMap::kMaxRank] = {};
    for (int d = 0; d < rank; ++d) at[d] = static_cast<int32_t>(w.Read(i.more[d])[l]);
    const uint32_t bytes = BoxBytes(map);
    uint64_t valid_bytes = 0;
    const auto fill = [&](Block* owner, BulkCopy* copy) {
      copy->kind = static_cast<BulkCopy::Kind>(i.small);
      Block* block = w.block;
      if (SharedBytes(i, w, l, shared, bytes, true, &block) == nullptr) return Signal::kFault;
      // Swizzling is by the address within the window, so a rank in its upper bits does not matter.
      return ForEachPart(map, at, static_cast<uint32_t>(shared), [&](uint32_t to, uint64_t from, uint32_t size) {
        if (from != 0) {
          valid_bytes += size;
          return BulkPiece(i, w, l, to, from, size, load, owner, copy);
        }
        if (!load) return Signal::kNext;  // stores leave out what is outside
        const uint64_t offset = (to & 0xffffff) - kSharedBase;
        copy->pieces.push_back({reinterpret_cast<uint8_t*>(owner->shared) + offset, nullptr, size});
        return Signal::kNext;
      });
    };
    signal = load ? BeginLoads(i, w, l, shared, bytes, i.operand[2], i.operand[3], fill) : BeginStore(i, w, l, fill);
    if (signal != Signal::kNext) return signal;
    (load ? run.counters.global_read_bytes : run.counters.global_written_bytes) += valid_bytes;
    (load ? run.counters.shared_written_bytes : run.counters.shared_read_bytes) += bytes;
    run.counters.bulk_copy_bytes += valid_bytes;
  }
  return Signal::kNext;
}

}  // namespace

// Load: [shared], [map, {coordinates}], [mbarrier] {, mask} {, policy}. Store: [map, {coordinates}], [shared] {,
// policy}.
Handler BindTensorCopy(Binder& b) {
  Instruction& out = b.out();
  int rank = 0;
  for (int r = 1; r <= TensorMap::kMaxRank; ++r) {
    if (b.Has(std::to_string(r) + "d")) rank = r;
  }
  if (rank == 0 || b.Has("im2col") || b.Has("im2col::w") || b.Has("im2col_no_offs") || b.Has("tile::gather4"))
    return nullptr;
  const size_t spaces = b.Part(1) == "reduce" ? 6 : 5;  // cp.async.bulk.tensor.2d.<to>.<from>
  const bool load = b.Part(spaces).substr(0, 6) == "shared" && b.Part(spaces + 1) == "global";
  const bool store = b.Part(spaces) == "global" && b.Part(spaces + 1).substr(0, 6) == "shared";
  int kind = BulkKind(b, load);
  // Tensor reductions take their type from the map: only fp32 is known.
  if (store && b.Part(1) == "reduce") kind = b.Has("add") ? BulkCopy::kAdd32 : -1;
  if ((!load && !store) || kind < 0) return nullptr;
  const size_t expected = (load ? 3 : 2) + (b.Has("multicast::cluster") ? 1 : 0) + (b.Has("L2::cache_hint") ? 1 : 0);
  if (b.Operands() != expected) return nullptr;
  const Operand& map = b.At(load ? 1 : 0);
  if (map.kind != Operand::kAddress || map.parts.size() != 2 || map.parts[1].kind != Operand::kVector ||
      map.parts[1].parts.size() != static_cast<size_t>(rank)) {
    return nullptr;
  }
  out.small = static_cast<uint8_t>(kind);
  out.flags = static_cast<uint32_t>(rank);
  out.operand[0] = PlainAddress(b, b.At(load ? 0 : 1), 32);
  out.operand[1] = b.Source(map.parts[0], 64);
  out.operand[2] = load ? PlainAddress(b, b.At(2), 32) : Instruction::kNoSlot;
  out.operand[3] = b.Has("multicast::cluster") ? b.Source(b.At(3), 16) : Instruction::kNoSlot;
  int32_t* more = b.More(static_cast<size_t>(rank));
  for (int d = 0; d < rank; ++d) more[d] = b.Source(map.parts[1].parts[d], 32);
  return &Tensor;
}

}  // namespace tessera::vgpu
