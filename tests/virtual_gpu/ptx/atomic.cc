// atom and red. Global atomics are atomic between the threads that run blocks and streams; shared memory belongs to
// one.
#include <atomic>

#include "tests/virtual_gpu/ptx/half_float.h"
#include "tests/virtual_gpu/ptx/memory_access.h"
#include "tests/virtual_gpu/ptx/shared_shadow.h"

namespace tessera::vgpu {
namespace {

// View::Value of the old value and the operands to the new one.
struct Add {
  template <class T>
  static T Do(T old, T b, T) {
    if constexpr (std::is_integral_v<T>)
      return static_cast<T>(static_cast<std::make_unsigned_t<T>>(old) + static_cast<std::make_unsigned_t<T>>(b));
    if constexpr (!std::is_integral_v<T>) return old + b;
  }
};
struct Min {
  template <class T>
  static T Do(T old, T b, T) {
    return b < old ? b : old;
  }
};
struct Max {
  template <class T>
  static T Do(T old, T b, T) {
    return old < b ? b : old;
  }
};
struct Exch {
  template <class T>
  static T Do(T, T b, T) {
    return b;
  }
};
struct Cas {
  template <class T>
  static T Do(T old, T b, T c) {
    return old == b ? c : old;
  }
};
struct And {
  template <class T>
  static T Do(T old, T b, T) {
    return old & b;
  }
};
struct Or {
  template <class T>
  static T Do(T old, T b, T) {
    return old | b;
  }
};
struct Xor {
  template <class T>
  static T Do(T old, T b, T) {
    return old ^ b;
  }
};
struct Inc {
  template <class T>
  static T Do(T old, T b, T) {
    return old >= b ? T{0} : static_cast<T>(old + 1);
  }
};
struct Dec {
  template <class T>
  static T Do(T old, T b, T) {
    return old == 0 || old > b ? b : static_cast<T>(old - 1);
  }
};

// Pairs of 16-bit numbers: each half by itself.
template <class H>
struct PairAdd {
  static uint32_t Do(uint32_t old, uint32_t b, uint32_t) {
    return H::Write(H::Read(old & 0xffff) + H::Read(b & 0xffff)) | H::Write(H::Read(old >> 16) + H::Read(b >> 16))
                                                                       << 16;
  }
};

template <class Op, class View, class Memory>
Memory Apply(Memory* at, Memory b, Memory c) {
  std::atomic_ref<Memory> cell(*at);
  using Lane = typename View::Lane;
  const auto value_b = View::Read(static_cast<Lane>(b)), value_c = View::Read(static_cast<Lane>(c));
  Memory old = cell.load();
  while (!cell.compare_exchange_weak(
      old, static_cast<Memory>(View::Write(Op::Do(View::Read(static_cast<Lane>(old)), value_b, value_c))))) {
  }
  return old;
}

// operand: result (or none), address, b, c. Vectors (small > 1, red only in effect): more holds results, then values.
template <class Op, class View, class Memory>
Signal Atomic(const Instruction& i, Warp& w, uint32_t lanes) {
  using Lane = typename View::Lane;
  uint64_t addresses[kLanes];
  Pointers p;
  LaneAddresses(i, w, 1, addresses);
  const uint32_t bytes = sizeof(Memory) * i.small;
  const Signal signal = Resolve(i, w, lanes, static_cast<Space>(i.flags & 0xff), Use::kAtomic, bytes, addresses, &p);
  if (signal != Signal::kNext) return signal;
  for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
    const int l = __builtin_ctz(rest);
    if (static_cast<Space>(i.flags & 0xff) != Space::kGlobal) RecordSharedAtomic(w, l, p.at[l], bytes);
    for (int e = 0; e < i.small; ++e) {
      Memory* at = reinterpret_cast<Memory*>(p.at[l]) + e;
      const int32_t from = i.small > 1 ? i.more[i.small + e] : i.operand[2];
      const Memory b = static_cast<Memory>(w.Read<Lane>(from)[l]);
      const Memory c =
          i.operand[3] != Instruction::kNoSlot ? static_cast<Memory>(w.Read<Lane>(i.operand[3])[l]) : Memory{0};
      const Memory old = Apply<Op, View, Memory>(at, b, c);
      const int32_t to = i.small > 1 ? i.more[e] : i.operand[0];
      if (to != Instruction::kNoSlot) w.Write<Lane>(to)[l] = static_cast<Lane>(old);
    }
  }
  return Signal::kNext;
}

template <class View, class Memory>
Handler IntegerOp(std::string_view op) {
  if (op == "add") return &Atomic<Add, View, Memory>;
  if (op == "min") return &Atomic<Min, View, Memory>;
  if (op == "max") return &Atomic<Max, View, Memory>;
  if (op == "exch") return &Atomic<Exch, View, Memory>;
  if (op == "cas") return &Atomic<Cas, View, Memory>;
  if (op == "and") return &Atomic<And, View, Memory>;
  if (op == "or") return &Atomic<Or, View, Memory>;
  if (op == "xor") return &Atomic<Xor, View, Memory>;
  if (op == "inc") return &Atomic<Inc, View, Memory>;
  if (op == "dec") return &Atomic<Dec, View, Memory>;
  return nullptr;
}

Handler OfType(Type type, std::string_view op) {
  switch (type) {
    case Type::kB16:
      return op == "cas" || op == "exch" ? IntegerOp<Int<uint16_t>, uint16_t>(op) : nullptr;
    case Type::kB32:
    case Type::kU32:
      return IntegerOp<Int<uint32_t>, uint32_t>(op);
    case Type::kS32:
      return IntegerOp<Int<int32_t>, uint32_t>(op);
    case Type::kB64:
    case Type::kU64:
      return IntegerOp<Int<uint64_t>, uint64_t>(op);
    case Type::kS64:
      return IntegerOp<Int<int64_t>, uint64_t>(op);
    default:
      break;
  }
  if (op != "add") return nullptr;
  switch (type) {
    case Type::kF32:
      return &Atomic<Add, F32<false>, uint32_t>;
    case Type::kF64:
      return &Atomic<Add, F64, uint64_t>;
    case Type::kF16:
      return &Atomic<Add, F16, uint16_t>;
    case Type::kBF16:
      return &Atomic<Add, BF16, uint16_t>;
    case Type::kF16x2:
      return &Atomic<PairAdd<F16>, Int<uint32_t>, uint32_t>;
    case Type::kBF16x2:
      return &Atomic<PairAdd<BF16>, Int<uint32_t>, uint32_t>;
    default:
      return nullptr;
  }
}

}  // namespace

Handler BindAtomic(Binder& b) {
  const std::string_view name = b.Part(0);
  if ((name != "atom" && name != "red") || b.Part(1) == "async") return nullptr;
  const bool atom = name == "atom";
  Instruction& out = b.out();
  out.kind = InstructionClass::kAtomic;
  constexpr std::string_view kOps[] = {"add", "min", "max", "exch", "cas", "and", "or", "xor", "inc", "dec"};
  std::string_view op;
  for (std::string_view candidate : kOps) {
    if (b.Has(candidate)) op = candidate;
  }
  const Type type = b.LastType();
  const int bits = Bits(type);
  const size_t hint = b.Has("L2::cache_hint") ? 1 : 0;
  const size_t expected = (atom ? 3 : 2) + (op == "cas" ? 1 : 0) + hint;
  if (b.Operands() != expected || bits == 0) return nullptr;
  size_t next = 0;
  const Operand* result = atom ? &b.At(next++) : nullptr;
  const Operand& address = b.At(next++);
  const Operand& value = b.At(next++);
  out.operand[3] = op == "cas" ? b.Source(b.At(next), bits) : Instruction::kNoSlot;
  out.operand[0] = Instruction::kNoSlot;
  if (value.kind == Operand::kVector) {
    const size_t count = value.parts.size();
    if (count > 8 || (atom && result->parts.size() != count)) return nullptr;
    int32_t* more = b.More(2 * count);
    for (size_t e = 0; e < count; ++e) {
      more[e] = atom ? b.Destination(result->parts[e], bits) : Instruction::kNoSlot;
      more[count + e] = b.Source(value.parts[e], bits);
    }
    out.small = static_cast<uint8_t>(count);
  } else {
    if (atom) out.operand[0] = b.Destination(*result, bits);
    out.operand[2] = b.Source(value, bits);
    out.small = 1;
  }
  out.flags = static_cast<uint32_t>(SpaceOf(b));
  b.BindAddress(address, 1);
  return OfType(type, op);
}

}  // namespace tessera::vgpu
