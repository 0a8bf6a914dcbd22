// cvt: the frequent forms vectorise, the others go lane by lane through one description of their steps.
#include "tests/virtual_gpu/ptx/binder.h"
#include "tests/virtual_gpu/ptx/convert_value.h"
#include "tests/virtual_gpu/ptx/half_float.h"

namespace tessera::vgpu {
namespace {

// Packed into the instruction: 5 bits per type, then flags.
uint32_t Pack(const Conversion& m) {
  return static_cast<uint32_t>(m.to) | static_cast<uint32_t>(m.from) << 5 | static_cast<uint32_t>(m.rounding) << 10 |
         m.integral << 13 | m.ftz << 14 | m.sat << 15 | m.relu << 16 | m.satfinite << 17 | (m.to_register == 64) << 18 |
         (m.from_register == 64) << 19;
}
Conversion Unpack(uint32_t f) {
  Conversion m;
  m.to = static_cast<Type>(f & 31);
  m.from = static_cast<Type>(f >> 5 & 31);
  m.rounding = static_cast<Rounding>(f >> 10 & 7);
  m.integral = f >> 13 & 1;
  m.ftz = f >> 14 & 1;
  m.sat = f >> 15 & 1;
  m.relu = f >> 16 & 1;
  m.satfinite = f >> 17 & 1;
  m.to_register = (f >> 18 & 1) != 0 ? 64 : 32;
  m.from_register = (f >> 19 & 1) != 0 ? 64 : 32;
  return m;
}

uint64_t Lane(const Warp& w, int32_t slot, bool wide, int l) {
  return wide ? w.Read<uint64_t>(slot)[l] : w.Read(slot)[l];
}

Signal Scalar(const Instruction& i, Warp& w, uint32_t lanes) {
  const Conversion m = Unpack(i.flags);
  for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
    const int l = __builtin_ctz(rest);
    const uint64_t out = Convert(Lane(w, i.operand[1], m.from_register == 64, l), m);
    if (m.to_register == 64) {
      w.Write<uint64_t>(i.operand[0])[l] = out;
    } else {
      w.Write(i.operand[0])[l] = static_cast<uint32_t>(out) & static_cast<uint32_t>(i.immediate);
    }
  }
  return Signal::kNext;
}

// Two floats to a pair; the first source is the upper half.
Signal ToPair(const Instruction& i, Warp& w, uint32_t lanes) {
  Conversion m = Unpack(i.flags);
  const bool fp8 = m.to == Type::kE4M3x2 || m.to == Type::kE5M2x2;
  const Type whole = m.to;
  m.to = whole == Type::kBF16x2 ? Type::kBF16 : Type::kF16;
  for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
    const int l = __builtin_ctz(rest);
    uint32_t halves[2];
    if (fp8) {
      for (int h = 0; h < 2; ++h) {
        halves[h] = ToFp8(F32<false>::Read(w.Read(i.operand[2 - h])[l]), whole == Type::kE4M3x2, m.relu);
      }
      w.Write(i.operand[0])[l] = halves[0] | halves[1] << 8;
      continue;
    }
    for (int h = 0; h < 2; ++h) halves[h] = static_cast<uint32_t>(Convert(w.Read(i.operand[2 - h])[l], m));
    w.Write(i.operand[0])[l] = halves[0] | halves[1] << 16;
  }
  return Signal::kNext;
}

Signal FromFp8Pair(const Instruction& i, Warp& w, uint32_t lanes) {  // to f16x2
  const Conversion m = Unpack(i.flags);
  for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
    const int l = __builtin_ctz(rest);
    const uint32_t pair = w.Read(i.operand[1])[l];
    const auto half = [&](uint32_t bits) {
      return ToF16(static_cast<float>(FromFp8(bits & 0xff, m.from == Type::kE4M3x2)));
    };
    w.Write(i.operand[0])[l] = half(pair) | half(pair >> 8) << 16;
  }
  return Signal::kNext;
}

struct Cast {
  template <class T>
  static TESSERA_VGPU_INLINE T Do(T a) {
    return a;
  }
};
template <class T>
struct To {
  template <class S>
  static TESSERA_VGPU_INLINE T Do(S a) {
    return static_cast<T>(a);
  }
};
template <class H>
struct Pair {
  static TESSERA_VGPU_INLINE uint32_t Do(float high, float low) { return H::Write(high) << 16 | H::Write(low); }
};

Handler Frequent(const Conversion& m) {
  if (m.sat || m.relu || m.satfinite || m.integral || m.ftz) return nullptr;
  using S32 = Int<int32_t>;
  using U32 = Int<uint32_t>;
  using S64 = Int<int64_t>;
  using U64 = Int<uint64_t>;
  const bool plain = m.to_register == Bits(m.to) && m.from_register == Bits(m.from);
  if (plain && m.to == Type::kS64 && m.from == Type::kS32) return Map<To<int64_t>, S64, S32>::Pick();
  if (plain && Bits(m.to) == 64 && m.from == Type::kU32) return Map<To<uint64_t>, U64, U32>::Pick();
  if (plain && Bits(m.to) == 32 && !IsFloat(m.to) && Bits(m.from) == 64 && !IsFloat(m.from))
    return Map<To<uint32_t>, U32, U64>::Pick();
  if (m.rounding != Rounding::kNearest) return nullptr;
  if (plain && m.to == Type::kF32 && m.from == Type::kS32) return Map<To<float>, F32<false>, S32>::Pick();
  if (plain && m.to == Type::kF32 && m.from == Type::kU32) return Map<To<float>, F32<false>, U32>::Pick();
  if (m.to == Type::kF32 && m.from == Type::kBF16) return Map<Cast, F32<false>, BF16>::Pick();
  if (m.to == Type::kF32 && m.from == Type::kF16) return Map<Cast, F32<false>, F16>::Pick();
  if (m.to == Type::kBF16 && m.from == Type::kF32) return Map<Cast, BF16, F32<false>>::Pick();
  if (m.to == Type::kF16 && m.from == Type::kF32) return Map<Cast, F16, F32<false>>::Pick();
  return nullptr;
}

bool ReadRounding(const Binder& b, Conversion* m) {
  const struct {
    std::string_view name;
    Rounding rounding;
    bool integral;
  } kModes[] = {
      {"rn", Rounding::kNearest, false}, {"rz", Rounding::kZero, false},         {"rm", Rounding::kDown, false},
      {"rp", Rounding::kUp, false},      {"rna", Rounding::kNearestAway, false}, {"rni", Rounding::kNearest, true},
      {"rzi", Rounding::kZero, true},    {"rmi", Rounding::kDown, true},         {"rpi", Rounding::kUp, true}};
  for (const auto& mode : kModes) {
    if (!b.Has(mode.name)) continue;
    m->rounding = mode.rounding;
    m->integral = mode.integral;
    return true;
  }
  return !b.Has("rs");  // stochastic rounding is not known
}

}  // namespace

Handler BindConvert(Binder& b) {
  if (b.Part(0) != "cvt") return nullptr;
  if (b.Part(1) == "pack") return nullptr;
  b.out().kind = InstructionClass::kConvert;
  const std::vector<Type> types = b.Types();
  Conversion m;
  if (types.size() != 2 || !ReadRounding(b, &m)) return nullptr;
  m.to = types[0];
  m.from = types[1];
  m.ftz = b.Has("ftz");
  m.sat = b.Has("sat");
  m.relu = b.Has("relu");
  m.satfinite = b.Has("satfinite");
  const bool to_pair = m.to == Type::kBF16x2 || m.to == Type::kF16x2 || m.to == Type::kE4M3x2 || m.to == Type::kE5M2x2;
  const bool from_fp8 = m.from == Type::kE4M3x2 || m.from == Type::kE5M2x2;
  if (from_fp8) {
    if (m.to != Type::kF16x2 || m.relu || !b.Bind({32, 16})) return nullptr;
    b.out().flags = Pack(m);
    return &FromFp8Pair;
  }
  if (to_pair) {
    if (m.from != Type::kF32 || !b.Bind({Bits(m.to), 32, 32})) return nullptr;
    b.out().flags = Pack(m);
    const bool plain = m.rounding == Rounding::kNearest && !m.relu && !m.satfinite;
    if (plain && m.to == Type::kBF16x2) return Map<Pair<BF16>, Int<uint32_t>, F32<false>, F32<false>>::Pick();
    if (plain && m.to == Type::kF16x2) return Map<Pair<F16>, Int<uint32_t>, F32<false>, F32<false>>::Pick();
    return &ToPair;
  }
  if (b.Operands() != 2 || m.to == Type::kPred || m.from == Type::kPred || m.from == Type::kTF32) return nullptr;
  if (Bits(m.to) > 64 || Bits(m.from) > 64) return nullptr;
  // Integer sources and results may sit in wider registers.
  m.to_register = b.RegisterBits(b.At(0)) == 64 ? 64 : 32;
  m.from_register = b.RegisterBits(b.At(1)) == 64 || (b.RegisterBits(b.At(1)) == 0 && Bits(m.from) == 64) ? 64 : 32;
  b.Bind({m.to_register, m.from_register});
  b.out().flags = Pack(m);
  b.out().immediate = b.RegisterBits(b.At(0)) == 16 || (IsFloat(m.to) && Bits(m.to) == 16) ? 0xffff : 0xffffffff;
  const Handler frequent = Frequent(m);
  return frequent != nullptr ? frequent : &Scalar;
}

}  // namespace tessera::vgpu
