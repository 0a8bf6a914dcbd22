// Logic, shifts and bit fields.
#include "tests/virtual_gpu/ptx/binder.h"

namespace tessera::vgpu {
namespace {

struct And {
  template <class T>
  static TESSERA_VGPU_INLINE T Do(T a, T b) {
    return a & b;
  }
};
struct Or {
  template <class T>
  static TESSERA_VGPU_INLINE T Do(T a, T b) {
    return a | b;
  }
};
struct Xor {
  template <class T>
  static TESSERA_VGPU_INLINE T Do(T a, T b) {
    return a ^ b;
  }
};
struct Not {
  template <class T>
  static TESSERA_VGPU_INLINE T Do(T a) {
    return static_cast<T>(~a);
  }
};
struct Cnot {
  template <class T>
  static TESSERA_VGPU_INLINE T Do(T a) {
    return a == 0 ? 1 : 0;
  }
};
// Shift amounts above the width are clamped to it: everything is shifted out.
struct Shl {
  template <class T>
  static TESSERA_VGPU_INLINE T Do(T a, uint32_t n) {
    return n < 8 * sizeof(T) ? static_cast<T>(a << n) : T{0};
  }
};
struct Shr {
  template <class T>
  static TESSERA_VGPU_INLINE T Do(T a, uint32_t n) {
    constexpr uint32_t kBits = 8 * sizeof(T);
    if (std::is_signed_v<T>) return a >> (n < kBits ? n : kBits - 1);
    return n < kBits ? static_cast<T>(a >> n) : T{0};
  }
};
// The 32-bit window of {b:a}; clamp limits the shift to 32, wrap takes it modulo 32.
template <bool kLeft, bool kWrap>
struct Funnel {
  static TESSERA_VGPU_INLINE uint32_t Do(uint32_t a, uint32_t b, uint32_t c) {
    const uint32_t n = kWrap ? c & 31 : (c < 32 ? c : 32);
    const uint64_t both = uint64_t{b} << 32 | a;
    return static_cast<uint32_t>(kLeft ? (both << n) >> 32 : both >> n);
  }
};
struct Popc {
  template <class T>
  static TESSERA_VGPU_INLINE uint32_t Do(T a) {
    return std::popcount(a);
  }
};
struct Clz {
  template <class T>
  static TESSERA_VGPU_INLINE uint32_t Do(T a) {
    return std::countl_zero(a);
  }
};
template <bool kShiftAmount>
struct Bfind {  // the highest bit that differs from the sign, ~0 when there is none
  template <class T>
  static TESSERA_VGPU_INLINE uint32_t Do(T a) {
    using U = std::make_unsigned_t<T>;
    const U bits = std::is_signed_v<T> && a < 0 ? static_cast<U>(~a) : static_cast<U>(a);
    if (bits == 0) return ~0u;
    const uint32_t zeros = std::countl_zero(bits);
    return kShiftAmount ? zeros : 8 * sizeof(T) - 1 - zeros;
  }
};
struct Brev {
  template <class T>
  static TESSERA_VGPU_INLINE T Do(T a) {
    T r = 0;
    for (unsigned i = 0; i < 8 * sizeof(T); ++i) r |= ((a >> i) & T{1}) << (8 * sizeof(T) - 1 - i);
    return r;
  }
};
struct Bfe {  // len bits from pos; beyond the top they repeat the field's sign (signed) or are zero
  template <class T>
  static TESSERA_VGPU_INLINE T Do(T a, uint32_t pos, uint32_t len) {
    using U = std::make_unsigned_t<T>;
    constexpr uint32_t kBits = 8 * sizeof(T);
    pos &= 0xff;
    len &= 0xff;
    if (len == 0) return 0;
    const uint32_t top = pos + len - 1 < kBits ? pos + len - 1 : kBits - 1;
    const bool sign = std::is_signed_v<T> && (static_cast<U>(a) >> top & 1) != 0;
    const U field = pos < kBits ? static_cast<U>(a) >> pos : U{0};
    const uint32_t have = pos < kBits ? top - pos + 1 : 0;  // bits of the field that exist
    const U mask = have >= kBits ? ~U{0} : (U{1} << have) - 1;
    return static_cast<T>((field & mask) | (sign ? static_cast<U>(~mask) : U{0}));
  }
};
template <class T>
Signal Bfi(const Instruction& i, Warp& w, uint32_t lanes) {  // the low len bits of a into b at pos
  const T* a = w.Read<T>(i.operand[1]);
  const T* b = w.Read<T>(i.operand[2]);
  const uint32_t* pos = w.Read(i.operand[3]);
  const uint32_t* len = w.Read(i.operand[4]);
  constexpr uint32_t kBits = 8 * sizeof(T);
  T out[kLanes];
  for (int l = 0; l < kLanes; ++l) {
    const uint32_t p = pos[l] & 0xff, n = len[l] & 0xff;
    const T ones = n >= kBits ? ~T{0} : (T{1} << n) - 1;
    const T mask = p >= kBits ? T{0} : static_cast<T>(ones << p);
    const T moved = p >= kBits ? T{0} : static_cast<T>(a[l] << p);
    out[l] = (b[l] & ~mask) | (moved & mask);
  }
  Blend(w.Write<T>(i.operand[0]), out, lanes);
  return Signal::kNext;
}

// Any function of three bits: bit (4a + 2b + c) of the table. Built from its eight minterms.
TESSERA_VGPU_INLINE Signal Lop3Body(const Instruction& i, Warp& w, uint32_t lanes) {
  const uint32_t* a = w.Read(i.operand[1]);
  const uint32_t* b = w.Read(i.operand[2]);
  const uint32_t* c = w.Read(i.operand[3]);
  uint32_t term[8];
  for (int t = 0; t < 8; ++t) term[t] = (i.immediate >> t & 1) != 0 ? ~0u : 0u;
  uint32_t out[kLanes];
  for (int l = 0; l < kLanes; ++l) {
    const uint32_t x = a[l], y = b[l], z = c[l];
    out[l] = (term[7] & x & y & z) | (term[6] & x & y & ~z) | (term[5] & x & ~y & z) | (term[4] & x & ~y & ~z) |
             (term[3] & ~x & y & z) | (term[2] & ~x & y & ~z) | (term[1] & ~x & ~y & z) | (term[0] & ~x & ~y & ~z);
  }
  Blend(w.Write(i.operand[0]), out, lanes);
  return Signal::kNext;
}
Signal Lop3Baseline(const Instruction& i, Warp& w, uint32_t lanes) {
  return Lop3Body(i, w, lanes);
}
TESSERA_VGPU_V3 Signal Lop3V3(const Instruction& i, Warp& w, uint32_t lanes) {
  return Lop3Body(i, w, lanes);
}

// Selects four bytes of {b:a}; bit 3 of a selector repeats the byte's sign.
Signal Prmt(const Instruction& i, Warp& w, uint32_t lanes) {
  const uint32_t* a = w.Read(i.operand[1]);
  const uint32_t* b = w.Read(i.operand[2]);
  const uint32_t* c = w.Read(i.operand[3]);
  uint32_t out[kLanes];
  for (int l = 0; l < kLanes; ++l) {
    const uint64_t both = uint64_t{b[l]} << 32 | a[l];
    uint32_t r = 0;
    for (int byte = 0; byte < 4; ++byte) {
      const uint32_t selector = c[l] >> (4 * byte);
      uint32_t v = static_cast<uint32_t>(both >> (8 * (selector & 7))) & 0xff;
      if ((selector & 8) != 0) v = (v & 0x80) != 0 ? 0xff : 0;
      r |= v << (8 * byte);
    }
    out[l] = r;
  }
  Blend(w.Write(i.operand[0]), out, lanes);
  return Signal::kNext;
}

template <class Op, int kSources>
Handler Bitwise(Binder& b, Type type) {
  const int bits = Bits(type);
  kSources == 1 ? b.Bind({bits, bits}) : b.Bind({bits, bits, bits});
  const auto pick = [](auto view) {
    using V = decltype(view);
    if constexpr (kSources == 1) return Map<Op, V, V>::Pick();
    if constexpr (kSources == 2) return Map<Op, V, V, V>::Pick();
  };
  switch (type) {
    case Type::kPred:
      return pick(Pred{});
    case Type::kB16:
      return pick(Int<uint16_t>{});
    case Type::kB32:
      return pick(Int<uint32_t>{});
    case Type::kB64:
      return pick(Int<uint64_t>{});
    default:
      return nullptr;
  }
}

template <class Op>
Handler Shift(Binder& b, Type type) {
  const int bits = Bits(type);
  b.Bind({bits, bits, 32});
  switch (type) {
    case Type::kB16:
    case Type::kU16:
      return Map<Op, Int<uint16_t>, Int<uint16_t>, Int<uint32_t>>::Pick();
    case Type::kS16:
      return Map<Op, Int<int16_t>, Int<int16_t>, Int<uint32_t>>::Pick();
    case Type::kB32:
    case Type::kU32:
      return Map<Op, Int<uint32_t>, Int<uint32_t>, Int<uint32_t>>::Pick();
    case Type::kS32:
      return Map<Op, Int<int32_t>, Int<int32_t>, Int<uint32_t>>::Pick();
    case Type::kB64:
    case Type::kU64:
      return Map<Op, Int<uint64_t>, Int<uint64_t>, Int<uint32_t>>::Pick();
    case Type::kS64:
      return Map<Op, Int<int64_t>, Int<int64_t>, Int<uint32_t>>::Pick();
    default:
      return nullptr;
  }
}

template <class Op>
Handler Count(Binder& b, Type type) {  // a 32-bit result of a 32- or 64-bit source
  b.Bind({32, Bits(type)});
  switch (type) {
    case Type::kB32:
    case Type::kU32:
      return Map<Op, Int<uint32_t>, Int<uint32_t>>::Pick();
    case Type::kB64:
    case Type::kU64:
      return Map<Op, Int<uint32_t>, Int<uint64_t>>::Pick();
    default:
      return nullptr;
  }
}

template <class Op>
Handler CountSigned(Binder& b, Type type) {
  if (!IsSigned(type)) return Count<Op>(b, type);
  b.Bind({32, Bits(type)});
  return Bits(type) == 64 ? Map<Op, Int<uint32_t>, Int<int64_t>>::Pick() : Map<Op, Int<uint32_t>, Int<int32_t>>::Pick();
}

Handler BindBfe(Binder& b, Type type) {
  b.Bind({Bits(type), Bits(type), 32, 32});
  using N = Int<uint32_t>;
  switch (type) {
    case Type::kU32:
      return Map<Bfe, N, N, N, N>::Pick();
    case Type::kS32:
      return Map<Bfe, Int<int32_t>, Int<int32_t>, N, N>::Pick();
    case Type::kU64:
      return Map<Bfe, Int<uint64_t>, Int<uint64_t>, N, N>::Pick();
    case Type::kS64:
      return Map<Bfe, Int<int64_t>, Int<int64_t>, N, N>::Pick();
    default:
      return nullptr;
  }
}

template <bool kLeft>
Handler BindFunnel(Binder& b) {
  b.Bind({32, 32, 32, 32});
  using N = Int<uint32_t>;
  return b.Has("wrap") ? Map<Funnel<kLeft, true>, N, N, N, N>::Pick() : Map<Funnel<kLeft, false>, N, N, N, N>::Pick();
}

Handler BindLop3(Binder& b) {
  if (b.Operands() != 5 || b.At(4).kind != Operand::kImmediate || b.LastType() != Type::kB32) return nullptr;
  b.out().operand[0] = b.Destination(b.At(0), 32);
  for (int s = 1; s <= 3; ++s) b.out().operand[s] = b.Source(b.At(s), 32);
  b.out().immediate = static_cast<int64_t>(b.At(4).bits);
  return HasV3() ? &Lop3V3 : &Lop3Baseline;
}

}  // namespace

Handler BindBits(Binder& b) {
  const std::string_view name = b.Part(0);
  const Type type = b.LastType();
  b.out().kind = InstructionClass::kInteger;
  if (name == "and") return Bitwise<And, 2>(b, type);
  if (name == "or") return Bitwise<Or, 2>(b, type);
  if (name == "xor") return Bitwise<Xor, 2>(b, type);
  if (name == "not") return Bitwise<Not, 1>(b, type);
  if (name == "cnot") return type == Type::kPred ? nullptr : Bitwise<Cnot, 1>(b, type);
  if (name == "shl") return Shift<Shl>(b, type);
  if (name == "shr") return Shift<Shr>(b, type);
  if (name == "shf") return b.Part(1) == "l" ? BindFunnel<true>(b) : BindFunnel<false>(b);
  if (name == "popc") return Count<Popc>(b, type);
  if (name == "clz") return Count<Clz>(b, type);
  if (name == "bfind")
    return b.Has("shiftamt") ? CountSigned<Bfind<true>>(b, type) : CountSigned<Bfind<false>>(b, type);
  if (name == "brev") return Bits(type) == 16 ? nullptr : Bitwise<Brev, 1>(b, type);
  if (name == "bfe") return BindBfe(b, type);
  if (name == "bfi" && (type == Type::kB32 || type == Type::kB64)) {
    b.Bind({Bits(type), Bits(type), Bits(type), 32, 32});
    return type == Type::kB64 ? &Bfi<uint64_t> : &Bfi<uint32_t>;
  }
  if (name == "lop3") return BindLop3(b);
  if (name == "prmt" && b.Parts() == 2) return b.Bind({32, 32, 32, 32}) ? &Prmt : nullptr;
  return nullptr;
}

}  // namespace tessera::vgpu
