// setp, set, selp, slct.
#include "tests/virtual_gpu/ptx/binder.h"
#include "tests/virtual_gpu/ptx/half_float.h"

namespace tessera::vgpu {
namespace {

enum Combine : uint32_t { kAlone, kAnd, kOr, kXor };
constexpr uint32_t kNegateThird = 8;
constexpr uint32_t kWithComplement = 16;  // p|q

// Comparisons of floating-point numbers come in two kinds: ordered (false with a NaN) and unordered (true with one).
template <bool kUnordered>
struct Lt {
  template <class T>
  static TESSERA_VGPU_INLINE bool Do(T a, T b) {
    return kUnordered ? !(a >= b) : a < b;
  }
};
template <bool kUnordered>
struct Le {
  template <class T>
  static TESSERA_VGPU_INLINE bool Do(T a, T b) {
    return kUnordered ? !(a > b) : a <= b;
  }
};
template <bool kUnordered>
struct Gt {
  template <class T>
  static TESSERA_VGPU_INLINE bool Do(T a, T b) {
    return kUnordered ? !(a <= b) : a > b;
  }
};
template <bool kUnordered>
struct Ge {
  template <class T>
  static TESSERA_VGPU_INLINE bool Do(T a, T b) {
    return kUnordered ? !(a < b) : a >= b;
  }
};
template <bool kUnordered>
struct Eq {
  template <class T>
  static TESSERA_VGPU_INLINE bool Do(T a, T b) {
    return kUnordered ? !(a < b || a > b) : a == b;
  }
};
template <bool kUnordered>
struct Ne {
  template <class T>
  static TESSERA_VGPU_INLINE bool Do(T a, T b) {
    return kUnordered ? !(a == b) : a < b || a > b;
  }
};
struct IsNumber {
  template <class T>
  static TESSERA_VGPU_INLINE bool Do(T a, T b) {
    return a == a && b == b;
  }
};
struct IsNan {
  template <class T>
  static TESSERA_VGPU_INLINE bool Do(T a, T b) {
    return a != a || b != b;
  }
};

template <class Op>
struct AsMask {
  template <class T>
  static TESSERA_VGPU_INLINE uint32_t Do(T a, T b) {
    return Op::Do(a, b) ? ~0u : 0u;
  }
};
template <class Op>
struct AsOne {
  template <class T>
  static TESSERA_VGPU_INLINE float Do(T a, T b) {
    return Op::Do(a, b) ? 1.0f : 0.0f;
  }
};

// operand: p, q, a, b, c
template <class Op, class V>
Signal SetpCombined(const Instruction& i, Warp& w, uint32_t lanes) {
  const auto* a = w.Read<typename V::Lane>(i.operand[2]);
  const auto* b = w.Read<typename V::Lane>(i.operand[3]);
  const uint32_t combine = i.flags & 7;
  const uint32_t* c = combine != kAlone ? w.Read(i.operand[4]) : nullptr;
  uint32_t p[kLanes], q[kLanes];
  for (int l = 0; l < kLanes; ++l) {
    const uint32_t r = Op::Do(V::Read(a[l]), V::Read(b[l])) ? ~0u : 0u;
    const uint32_t third = c == nullptr ? 0 : (i.flags & kNegateThird) != 0 ? ~c[l] : c[l];
    p[l] = combine == kAnd ? r & third : combine == kOr ? r | third : combine == kXor ? r ^ third : r;
    q[l] = combine == kAnd ? ~r & third : combine == kOr ? ~r | third : combine == kXor ? ~r ^ third : ~r;
  }
  Blend(w.Write(i.operand[0]), p, lanes);
  if ((i.flags & kWithComplement) != 0) Blend(w.Write(i.operand[1]), q, lanes);
  return Signal::kNext;
}

enum Form { kSetp, kSetpCombined, kSetMask, kSetOne };

template <class Op, class V>
Handler InForm(Form form) {
  switch (form) {
    case kSetp:
      return Map<AsMask<Op>, Pred, V, V>::Pick();
    case kSetMask:
      return Map<AsMask<Op>, Int<uint32_t>, V, V>::Pick();
    case kSetOne:
      return Map<AsOne<Op>, F32<false>, V, V>::Pick();
    case kSetpCombined:
      return &SetpCombined<Op, V>;
  }
  return nullptr;
}

template <class V>
Handler Comparison(std::string_view op, Form form, bool is_float) {
  if (op == "lt" || op == "lo") return InForm<Lt<false>, V>(form);
  if (op == "le" || op == "ls") return InForm<Le<false>, V>(form);
  if (op == "gt" || op == "hi") return InForm<Gt<false>, V>(form);
  if (op == "ge" || op == "hs") return InForm<Ge<false>, V>(form);
  if (op == "eq") return InForm<Eq<false>, V>(form);
  if (op == "ne") return InForm<Ne<false>, V>(form);
  if (!is_float) return nullptr;
  if (op == "ltu") return InForm<Lt<true>, V>(form);
  if (op == "leu") return InForm<Le<true>, V>(form);
  if (op == "gtu") return InForm<Gt<true>, V>(form);
  if (op == "geu") return InForm<Ge<true>, V>(form);
  if (op == "equ") return InForm<Eq<true>, V>(form);
  if (op == "neu") return InForm<Ne<true>, V>(form);
  if (op == "num") return InForm<IsNumber, V>(form);
  if (op == "nan") return InForm<IsNan, V>(form);
  return nullptr;
}

Handler OfType(Type type, std::string_view op, Form form, bool ftz) {
  switch (type) {
    case Type::kB16:
    case Type::kU16:
      return Comparison<Int<uint16_t>>(op, form, false);
    case Type::kS16:
      return Comparison<Int<int16_t>>(op, form, false);
    case Type::kB32:
    case Type::kU32:
      return Comparison<Int<uint32_t>>(op, form, false);
    case Type::kS32:
      return Comparison<Int<int32_t>>(op, form, false);
    case Type::kB64:
    case Type::kU64:
      return Comparison<Int<uint64_t>>(op, form, false);
    case Type::kS64:
      return Comparison<Int<int64_t>>(op, form, false);
    case Type::kF16:
      return Comparison<F16>(op, form, true);
    case Type::kBF16:
      return Comparison<BF16>(op, form, true);
    case Type::kF32:
      return ftz ? Comparison<F32<true>>(op, form, true) : Comparison<F32<false>>(op, form, true);
    case Type::kF64:
      return Comparison<F64>(op, form, true);
    default:
      return nullptr;
  }
}

Handler BindSetp(Binder& b) {
  const Type type = b.LastType();
  const int bits = Bits(type);
  Instruction& out = b.out();
  const bool pair = b.Operands() > 0 && b.At(0).kind == Operand::kPair;
  if (!pair && b.Operands() == 3) {
    return b.Bind({1, bits, bits}) ? OfType(type, b.Part(1), kSetp, b.Has("ftz")) : nullptr;
  }
  if (b.Operands() != 3 && b.Operands() != 4) return nullptr;
  if (pair && b.At(0).parts.size() != 2) return nullptr;
  out.operand[0] = b.Destination(pair ? b.At(0).parts[0] : b.At(0), 1);
  if (pair) out.operand[1] = b.Destination(b.At(0).parts[1], 1);
  if (pair) out.flags |= kWithComplement;
  out.operand[2] = b.Source(b.At(1), bits);
  out.operand[3] = b.Source(b.At(2), bits);
  if (b.Operands() == 4) {
    out.flags |= b.Has("and") ? kAnd : b.Has("or") ? kOr : b.Has("xor") ? kXor : kAlone;
    if ((out.flags & 7) == kAlone) return nullptr;
    Operand third = b.At(3);
    if (third.negated) out.flags |= kNegateThird;
    third.negated = false;
    out.operand[4] = b.Source(third, 1);
  }
  return OfType(type, b.Part(1), kSetpCombined, b.Has("ftz"));
}

Handler BindSet(Binder& b) {
  const std::vector<Type> types = b.Types();
  if (types.size() != 2 || b.Operands() != 3 || Bits(types[0]) != 32) return nullptr;
  if (types[0] == Type::kF16x2 || types[0] == Type::kBF16x2) return nullptr;
  b.Bind({32, Bits(types[1]), Bits(types[1])});
  return OfType(types[1], b.Part(1), types[0] == Type::kF32 ? kSetOne : kSetMask, b.Has("ftz"));
}

struct Select {
  template <class T>
  static TESSERA_VGPU_INLINE T Do(T a, T b, uint32_t p) {
    return p != 0 ? a : b;
  }
};
struct Slct {
  template <class T, class C>
  static TESSERA_VGPU_INLINE T Do(T a, T b, C c) {
    return c >= 0 ? a : b;
  }
};

}  // namespace

Handler BindCompare(Binder& b) {
  const std::string_view name = b.Part(0);
  b.out().kind = IsFloat(b.LastType()) ? InstructionClass::kFloat : InstructionClass::kInteger;
  if (name == "setp") return BindSetp(b);
  if (name == "set") return BindSet(b);
  if (name == "selp") {
    const int bits = Bits(b.LastType());
    if (!b.Bind({bits, bits, bits, 1})) return nullptr;
    return bits == 64 ? Map<Select, Int<uint64_t>, Int<uint64_t>, Int<uint64_t>, Pred>::Pick()
                      : Map<Select, Int<uint32_t>, Int<uint32_t>, Int<uint32_t>, Pred>::Pick();
  }
  if (name == "slct") {
    const std::vector<Type> types = b.Types();
    if (types.size() != 2 || Bits(types[1]) != 32) return nullptr;
    const int bits = Bits(types[0]);
    b.Bind({bits, bits, bits, 32});
    using U = Int<uint32_t>;
    using W = Int<uint64_t>;
    if (types[1] == Type::kF32)
      return bits == 64 ? Map<Slct, W, W, W, F32<false>>::Pick() : Map<Slct, U, U, U, F32<false>>::Pick();
    return bits == 64 ? Map<Slct, W, W, W, Int<int32_t>>::Pick() : Map<Slct, U, U, U, Int<int32_t>>::Pick();
  }
  return nullptr;
}

}  // namespace tessera::vgpu
