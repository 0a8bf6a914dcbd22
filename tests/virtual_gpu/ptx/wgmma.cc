// wgmma.mma_async m64nNk16 of bf16 and f16. Each of the four warps of a warpgroup computes its 16 rows; the operands in
// shared memory are found by descriptors in the canonical layouts of the PTX ISA.
#include "tests/virtual_gpu/ptx/binder.h"
#include "tests/virtual_gpu/ptx/half_float.h"
#include "tests/virtual_gpu/ptx/matrix.h"
#include "tests/virtual_gpu/ptx/matrix_queue.h"
#include "tests/virtual_gpu/ptx/shared_shadow.h"
#include "tests/virtual_gpu/ptx/swizzle.h"
#include "tests/virtual_gpu/ptx/text.h"

namespace tessera::vgpu {
namespace {

enum Flags : uint32_t {
  kBf16 = 1,
  kHalfAccumulator = 2,
  kARegisters = 4,
  kTransposeA = 8,
  kTransposeB = 16,
  kNegateA = 32,
  kNegateB = 64,
  kScaleNegated = 128,
};
constexpr int kChunkBytes = 16;  // eight elements
constexpr int kDepth = 16;       // k

// Where a descriptor's chunks of eight elements are. Along k (K-major) or along m or n (MN-major), which is transposed.
class Matrix {
 public:
  Matrix(uint64_t descriptor, bool transposed)
      : start_(static_cast<uint32_t>(descriptor & 0x3fff) << 4),
        leading_(static_cast<uint32_t>(descriptor >> 16 & 0x3fff) << 4),
        stride_(static_cast<uint32_t>(descriptor >> 32 & 0x3fff) << 4),
        base_offset_(static_cast<uint32_t>(descriptor >> 49 & 7)),
        transposed_(transposed) {
    constexpr Swizzle kModes[] = {Swizzle::kNone, Swizzle::k128, Swizzle::k64, Swizzle::k32};
    swizzle_ = kModes[descriptor >> 62];
    width_ = 1u << static_cast<int>(swizzle_);  // chunks across a swizzle atom
  }
  // The chunk with elements (mn, k...k+7) or, transposed, (mn...mn+7, k): a window address.
  uint32_t Address(uint32_t mn, uint32_t k) const {
    uint32_t offset;
    if (!transposed_) {
      const uint32_t chunk = k / 8;
      offset = mn % 8 * (width_ * kChunkBytes) + mn / 8 * stride_ +
               (swizzle_ == Swizzle::kNone ? chunk * leading_ : chunk * kChunkBytes);
    } else {
      const uint32_t chunk = mn / 8;
      offset = swizzle_ == Swizzle::kNone ? chunk * stride_ + k % 8 * kChunkBytes + k / 8 * leading_
                                          : chunk % width_ * kChunkBytes + chunk / width_ * leading_ +
                                                k % 8 * (width_ * kChunkBytes) + k / 8 * stride_;
    }
    return Swizzled(start_ + offset, swizzle_);
  }
  bool transposed() const { return transposed_; }
  uint32_t base_offset() const { return base_offset_; }

 private:
  uint32_t start_, leading_, stride_, base_offset_;
  Swizzle swizzle_ = Swizzle::kNone;
  uint32_t width_ = 1;
  bool transposed_;
};

// Reads chunks of shared memory for one product.
class Reader {
 public:
  Reader(Warp& warp, const MatrixQueue::Entry& entry) : warp_(warp), entry_(entry) {
    access_ = SharedShadow::Of(warp, SharedShadow::kManyLanes);
    access_.order = &entry.order;
    access_.fenced = &entry.fenced;
    access_.fenced_by_self = &warp.block->cluster->fenced_by_self;
    access_.pc = entry.pc;
  }
  // Null on a fault.
  const uint8_t* Chunk(uint32_t address, bool check) {
    Block& block = *warp_.block;
    const uint32_t offset = address - kSharedBase;
    if (address < kSharedBase || offset + kChunkBytes > block.shared_bytes) {
      Fail(FaultKind::kOutOfBounds, "a matrix descriptor reaches shared address " + Hex(address) + "; the block has " +
                                        std::to_string(block.shared_bytes) + " bytes from " + Hex(kSharedBase));
      return nullptr;
    }
    if (check && block.shadow != nullptr && !block.shadow->Read(access_, offset, kChunkBytes)) {
      const auto problem = block.shadow->Describe(access_, offset, kChunkBytes, false, *block.run->kernel);
      Fail(problem.kind, problem.what);
      return nullptr;
    }
    return reinterpret_cast<const uint8_t*>(block.shared) + offset;
  }
  // A fragment register of eight rows or columns from mn and eight values of k: lane 4g + t holds (g, 2t) and (g, 2t +
  // 1).
  bool Fragment(const Matrix& operand, uint32_t mn, uint32_t k, bool check, uint32_t sign, uint32_t* to) {
    if (!operand.transposed()) {
      for (uint32_t g = 0; g < 8; ++g) {
        const uint8_t* chunk = Chunk(operand.Address(mn + g, k), check);
        if (chunk == nullptr) return false;
        std::memcpy(to + 4 * g, chunk, kChunkBytes);
      }
    } else {
      uint16_t element[8][8];  // k, mn
      for (uint32_t j = 0; j < 8; ++j) {
        const uint8_t* chunk = Chunk(operand.Address(mn, k + j), check);
        if (chunk == nullptr) return false;
        std::memcpy(element[j], chunk, kChunkBytes);
      }
      for (int l = 0; l < kLanes; ++l) {
        const int g = l / 4, t = l % 4;
        to[l] = element[2 * t][g] | uint32_t{element[2 * t + 1][g]} << 16;
      }
    }
    for (int l = 0; l < kLanes; ++l) to[l] ^= sign;
    return true;
  }

 private:
  void Fail(FaultKind kind, const std::string& what) { warp_.Fail(*entry_.instruction, kind, -1, what); }

  Warp& warp_;
  const MatrixQueue::Entry& entry_;
  SharedShadow::Access access_;
};

}  // namespace

// more: accumulators, then A's four registers; operand: scale-d, a descriptor, b descriptor; immediate: n
WgmmaSlots SlotsOf(const Instruction& i) {
  const int count = static_cast<int>(i.immediate) / ((i.flags & kHalfAccumulator) != 0 ? 4 : 2);
  return {i.more, count, (i.flags & kARegisters) != 0 ? i.more + count : nullptr};
}

Signal ComputeWgmma(Warp& w, const MatrixQueue::Entry& entry) {
  const Instruction& i = *entry.instruction;
  const WgmmaSlots slots = SlotsOf(i);
  const uint32_t warp_of_group = w.index % 4;
  const uint32_t sign_a = (i.flags & kNegateA) != 0 ? 0x80008000u : 0,
                 sign_b = (i.flags & kNegateB) != 0 ? 0x80008000u : 0;
  Reader reader(w, entry);
  alignas(64) uint32_t a_storage[4][kLanes], b_storage[2][kLanes], wide[4][kLanes];
  const uint32_t* a[4];
  const uint32_t* b[2] = {b_storage[0], b_storage[1]};
  const Matrix from_a(entry.a, (i.flags & kTransposeA) != 0), from_b(entry.b, (i.flags & kTransposeB) != 0);
  for (uint32_t r = 0; r < 4; ++r) {
    a[r] = a_storage[r];
    if (slots.a != nullptr) {
      const uint32_t* from = w.Read(slots.a[r]);
      for (int l = 0; l < kLanes; ++l) a_storage[r][l] = from[l] ^ sign_a;
    } else if (!reader.Fragment(from_a, 16 * warp_of_group + 8 * (r & 1), 8 * (r >> 1), true, sign_a, a_storage[r])) {
      return Signal::kFault;
    }
  }
  const bool half = (i.flags & kHalfAccumulator) != 0;
  for (uint32_t n = 0; n < static_cast<uint32_t>(i.immediate); n += 8) {
    // The four warps share the checks of B: each looks after a quarter of the columns.
    const bool check = n / 8 % 4 == warp_of_group;
    for (uint32_t r = 0; r < 2; ++r) {
      if (!reader.Fragment(from_b, n, 8 * r, check, sign_b, b_storage[r])) return Signal::kFault;
    }
    const uint32_t* c[4];
    uint32_t* d[4];
    for (uint32_t r = 0; r < 4; ++r) {
      c[r] = d[r] = half ? wide[r] : w.Write(slots.accumulators[n / 2 + r]);
      if (half && entry.add) {
        const uint32_t* pairs = w.Read(slots.accumulators[n / 4 + (r >> 1)]);
        for (int l = 0; l < kLanes; ++l) wide[r][l] = F32<false>::Write(FromF16(pairs[l] >> (16 * (r & 1)) & 0xffff));
      }
      if (!entry.add) std::memset(d[r], 0, sizeof wide[0]);
    }
    Product(kDepth, (i.flags & kBf16) != 0, a, b, c, d);
    for (uint32_t r = 0; half && r < 2; ++r) {
      uint32_t* pairs = w.Write(slots.accumulators[n / 4 + r]);
      for (int l = 0; l < kLanes; ++l) {
        pairs[l] = ToF16(F32<false>::Read(wide[2 * r][l])) | ToF16(F32<false>::Read(wide[2 * r + 1][l])) << 16;
      }
    }
  }
  return Signal::kNext;
}

namespace {

Signal MmaAsync(const Instruction& i, Warp& w, uint32_t lanes) {
  if (w.live != kAllLanes)
    return w.Fail(i, FaultKind::kBarrier, -1, "lanes of the warp have ended; wgmma needs all 32");
  if (lanes != kAllLanes) return Signal::kWaitLanes;
  MatrixQueue::Entry entry;
  entry.instruction = &i;
  entry.pc = w.pc;
  entry.add = (w.Read(i.operand[0])[0] != 0) != ((i.flags & kScaleNegated) != 0);
  if ((i.flags & kARegisters) == 0) entry.a = w.Read<uint64_t>(i.operand[1])[0];
  entry.b = w.Read<uint64_t>(i.operand[2])[0];
  for (const uint64_t descriptor : {entry.a, entry.b}) {
    if (Matrix(descriptor, false).base_offset() != 0) {
      return w.Fail(i, FaultKind::kUnknownInstruction, -1,
                    "a matrix descriptor with a base offset: atoms must lie at multiples of their size");
    }
  }
  entry.order = w.clock;
  entry.fenced = w.fenced;
  w.Tick();
  w.matrices->Add(std::move(entry), w);
  return Signal::kNext;
}

Signal Fence(const Instruction&, Warp& w, uint32_t lanes) {
  return lanes == w.live ? Signal::kNext : Signal::kWaitLanes;
}

Signal Commit(const Instruction&, Warp& w, uint32_t lanes) {
  if (lanes != w.live) return Signal::kWaitLanes;
  w.matrices->Commit();
  return Signal::kNext;
}

Signal WaitGroup(const Instruction& i, Warp& w, uint32_t lanes) {
  if (lanes != w.live) return Signal::kWaitLanes;
  return w.matrices->Wait(w, static_cast<uint64_t>(i.immediate));
}

Handler BindMmaAsync(Binder& b) {
  Instruction& out = b.out();
  int n = 0;
  for (size_t p = 0; p < b.Parts(); ++p) {
    const std::string_view shape = b.Part(p);
    if (shape.substr(0, 4) != "m64n" || shape.size() < 7 || shape.substr(shape.size() - 3) != "k16") continue;
    n = std::atoi(std::string(shape.substr(4, shape.size() - 7)).c_str());
  }
  const std::vector<Type> types = b.Types();  // d, a, b
  if (n < 8 || n > 256 || n % 8 != 0 || types.size() != 3 || types[1] != types[2] || b.Operands() < 6) return nullptr;
  const bool half = types[0] == Type::kF16, bf16 = types[1] == Type::kBF16;
  if ((!half && types[0] != Type::kF32) || (!bf16 && types[1] != Type::kF16) || (half && bf16)) return nullptr;
  const bool a_registers = b.At(1).kind == Operand::kVector;
  const size_t count = static_cast<size_t>(n) / (half ? 4 : 2);
  if (b.At(0).kind != Operand::kVector || b.At(0).parts.size() != count || (a_registers && b.At(1).parts.size() != 4))
    return nullptr;
  int32_t* more = b.More(count + 4);
  for (size_t r = 0; r < count; ++r) {
    more[r] = b.Destination(b.At(0).parts[r], 32);
    b.Source(b.At(0).parts[r], 32);
  }
  for (size_t r = 0; a_registers && r < 4; ++r) more[count + r] = b.Source(b.At(1).parts[r], 32);
  if (!a_registers) out.operand[1] = b.Source(b.At(1), 64);
  out.operand[2] = b.Source(b.At(2), 64);
  out.flags = (bf16 ? uint32_t{kBf16} : 0u) | (half ? uint32_t{kHalfAccumulator} : 0u) |
              (a_registers ? uint32_t{kARegisters} : 0u);
  Operand scale = b.At(3);
  if (scale.negated) out.flags |= kScaleNegated;
  scale.negated = false;
  out.operand[0] = b.Source(scale, b.RegisterBits(scale) == 32 ? 32 : 1);
  // imm-scale-a, imm-scale-b, then imm-trans-a (unless A is in registers), imm-trans-b.
  const size_t immediates = a_registers ? 3 : 4;
  if (b.Operands() != 4 + 2 && b.Operands() != 4 + immediates) return nullptr;
  for (size_t o = 4; o < b.Operands(); ++o) {
    if (b.At(o).kind != Operand::kImmediate) return nullptr;
  }
  if (static_cast<int64_t>(b.At(4).bits) == -1) out.flags |= kNegateA;
  if (static_cast<int64_t>(b.At(5).bits) == -1) out.flags |= kNegateB;
  if (b.Operands() > 6) {
    if (!a_registers && b.At(6).bits != 0) out.flags |= kTransposeA;
    if (b.At(b.Operands() - 1).bits != 0) out.flags |= kTransposeB;
  }
  out.immediate = n;
  out.tensor_flops = 2u * 16 * static_cast<uint32_t>(n) * kDepth;  // one warp's share
  return &MmaAsync;
}

}  // namespace

bool IsWgmma(const Instruction& instruction) {
  return instruction.handler == &MmaAsync;
}

Handler BindWgmma(Binder& b) {
  if (b.Part(0) != "wgmma") return nullptr;
  Instruction& out = b.out();
  out.kind = InstructionClass::kTensorCore;
  const std::string_view what = b.Part(1);
  if (what == "mma_async" && b.Part(2) == "sync") return BindMmaAsync(b);
  out.kind = InstructionClass::kBarrier;
  if (what == "fence") return &Fence;
  if (what == "commit_group") return &Commit;
  if (what == "wait_group" && b.Operands() == 1) {
    out.immediate = static_cast<int64_t>(b.At(0).bits);
    return &WaitGroup;
  }
  return nullptr;
}

}  // namespace tessera::vgpu
