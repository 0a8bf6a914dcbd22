// mov in all its forms, cvta, and reading clocks.
#include <chrono>

#include "tests/virtual_gpu/ptx/binder.h"

namespace tessera::vgpu {
namespace {

struct Copy {
  template <class T>
  static TESSERA_VGPU_INLINE T Do(T a) {
    return a;
  }
};
struct PackHalves {
  static TESSERA_VGPU_INLINE uint32_t Do(uint32_t low, uint32_t high) { return (low & 0xffffu) | high << 16; }
};
struct PackWords {
  static TESSERA_VGPU_INLINE uint64_t Do(uint32_t low, uint32_t high) { return uint64_t{high} << 32 | low; }
};

// Splits or joins any widths: `small` pieces of flags bits each.
Signal Unpack(const Instruction& i, Warp& w, uint32_t lanes) {
  const uint32_t piece_bits = i.flags;
  const bool wide = piece_bits * i.small == 64;
  for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
    const int l = __builtin_ctz(rest);
    const uint64_t value = wide ? w.Read<uint64_t>(i.more[0])[l] : w.Read(i.more[0])[l];
    for (int p = 0; p < i.small; ++p) {
      const uint64_t mask = piece_bits == 64 ? ~uint64_t{0} : (uint64_t{1} << piece_bits) - 1;
      w.Write(i.more[1 + p])[l] = static_cast<uint32_t>(value >> (p * piece_bits) & mask);
    }
  }
  return Signal::kNext;
}

Signal PackMany(const Instruction& i, Warp& w, uint32_t lanes) {
  const uint32_t piece_bits = i.flags;
  const uint64_t mask = (uint64_t{1} << piece_bits) - 1;
  for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
    const int l = __builtin_ctz(rest);
    uint64_t value = 0;
    for (int p = 0; p < i.small; ++p) value |= (w.Read(i.more[1 + p])[l] & mask) << (p * piece_bits);
    if (piece_bits * i.small == 64) {
      w.Write<uint64_t>(i.more[0])[l] = value;
    } else {
      w.Write(i.more[0])[l] = static_cast<uint32_t>(value);
    }
  }
  return Signal::kNext;
}

// 128-bit registers: two 64-bit slots, low first.
Signal Pack128(const Instruction& i, Warp& w, uint32_t lanes) {
  for (int h = 0; h < 2; ++h) Blend(w.Write<uint64_t>(i.operand[0] + 2 * h), w.Read<uint64_t>(i.operand[1 + h]), lanes);
  return Signal::kNext;
}
Signal Unpack128(const Instruction& i, Warp& w, uint32_t lanes) {
  for (int h = 0; h < 2; ++h) Blend(w.Write<uint64_t>(i.operand[h]), w.Read<uint64_t>(i.operand[2] + 2 * h), lanes);
  return Signal::kNext;
}

// Clocks count executed branches and time: monotonic, and nothing to measure by.
Signal Clock(const Instruction& i, Warp& w, uint32_t lanes) {
  const uint64_t now = static_cast<uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count());
  for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
    const int l = __builtin_ctz(rest);
    if (i.small == 64) {
      w.Write<uint64_t>(i.operand[0])[l] = now;
    } else {
      w.Write(i.operand[0])[l] = static_cast<uint32_t>(now >> (i.small == 1 ? 32 : 0));
    }
  }
  return Signal::kNext;
}

// Generic addresses of shared memory are the host addresses of its bytes.
Signal SharedToGeneric(const Instruction& i, Warp& w, uint32_t lanes) {
  const uint64_t base = reinterpret_cast<uint64_t>(w.block->shared) - kSharedBase;
  uint64_t out[kLanes];
  for (int l = 0; l < kLanes; ++l) {
    out[l] = base + (i.small == 64 ? w.Read<uint64_t>(i.operand[1])[l] : w.Read(i.operand[1])[l]);
  }
  Blend(w.Write<uint64_t>(i.operand[0]), out, lanes);
  return Signal::kNext;
}
Signal GenericToShared(const Instruction& i, Warp& w, uint32_t lanes) {
  const uint64_t base = reinterpret_cast<uint64_t>(w.block->shared) - kSharedBase;
  uint64_t out[kLanes];
  for (int l = 0; l < kLanes; ++l) out[l] = w.Read<uint64_t>(i.operand[1])[l] - base;
  Blend(w.Write<uint64_t>(i.operand[0]), out, lanes);
  return Signal::kNext;
}

Handler BindVectorMove(Binder& b, int bits) {
  const bool unpack = b.At(0).kind == Operand::kVector;
  const std::vector<Operand>& pieces = b.At(unpack ? 0 : 1).parts;
  const Operand& whole = b.At(unpack ? 1 : 0);
  const int count = static_cast<int>(pieces.size());
  Instruction& out = b.out();
  if (bits == 128) {
    if (count != 2) return nullptr;
    for (int h = 0; h < 2; ++h)
      out.operand[unpack ? h : 1 + h] = unpack ? b.Destination(pieces[h], 64) : b.Source(pieces[h], 64);
    out.operand[unpack ? 2 : 0] = unpack ? b.Source(whole, 128) : b.Destination(whole, 128);
    return unpack ? &Unpack128 : &Pack128;
  }
  if (count != 2 && count != 4) return nullptr;
  const int piece_bits = bits / count;
  if (!unpack && count == 2 && (bits == 32 || bits == 64)) {
    out.operand[0] = b.Destination(whole, bits);
    for (int p = 0; p < 2; ++p) out.operand[1 + p] = b.Source(pieces[p], piece_bits);
    using U = Int<uint32_t>;
    return bits == 32 ? Map<PackHalves, U, U, U>::Pick() : Map<PackWords, Int<uint64_t>, U, U>::Pick();
  }
  int32_t* more = b.More(1 + count);
  more[0] = unpack ? b.Source(whole, bits) : b.Destination(whole, bits);
  for (int p = 0; p < count; ++p) {
    more[1 + p] =
        unpack ? b.Destination(pieces[p], std::max(piece_bits, 16)) : b.Source(pieces[p], std::max(piece_bits, 16));
  }
  out.small = static_cast<uint8_t>(count);
  out.flags = static_cast<uint32_t>(piece_bits);
  return unpack ? &Unpack : &PackMany;
}

Handler BindMov(Binder& b) {
  const Type type = b.LastType();
  const int bits = Bits(type);
  if (b.Operands() != 2 || b.Parts() != 2 || bits == 0) return nullptr;
  if (b.At(0).kind == Operand::kVector || b.At(1).kind == Operand::kVector) return BindVectorMove(b, bits);
  if (b.At(1).kind == Operand::kSpecial) {
    const std::string& name = b.At(1).name;
    const bool hi = name == "%clock_hi" || name == "%globaltimer_hi";
    if (hi || name == "%clock" || name == "%clock64" || name == "%globaltimer" || name == "%globaltimer_lo") {
      b.out().operand[0] = b.Destination(b.At(0), bits);
      b.out().small = bits == 64 ? 64 : hi ? 1 : 32;
      return &Clock;
    }
  }
  if (!b.Bind({bits, bits}) || bits == 128) return nullptr;
  if (type == Type::kPred) return Map<Copy, Pred, Pred>::Pick();
  return bits == 64 ? Map<Copy, Int<uint64_t>, Int<uint64_t>>::Pick() : Map<Copy, Int<uint32_t>, Int<uint32_t>>::Pick();
}

Handler BindCvta(Binder& b) {
  if (b.Operands() != 2) return nullptr;
  const bool shared = b.Has("shared") || b.Has("shared::cta");
  if (b.Has("shared::cluster")) return nullptr;
  if (shared && !b.Has("to")) {
    const int bits = b.At(1).kind == Operand::kRegister ? b.RegisterBits(b.At(1)) : 64;
    b.out().small = static_cast<uint8_t>(bits);
    return b.Bind({64, bits}) ? &SharedToGeneric : nullptr;
  }
  if (!b.Bind({64, 64})) return nullptr;
  if (shared) return &GenericToShared;
  return Map<Copy, Int<uint64_t>, Int<uint64_t>>::Pick();  // host addresses already
}

}  // namespace

Handler BindMove(Binder& b) {
  b.out().kind = InstructionClass::kMove;
  if (b.Part(0) == "mov") return BindMov(b);
  if (b.Part(0) == "cvta") return BindCvta(b);
  return nullptr;
}

}  // namespace tessera::vgpu
