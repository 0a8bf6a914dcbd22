// ld and st. Cache and ordering modifiers are accepted and ignored: memory here is sequentially consistent.
#include "tests/virtual_gpu/ptx/memory_access.h"

namespace tessera::vgpu {
namespace {

// T is the type in memory, Lane that of the register. Elements of vectors are in more[1...].
template <class T, class Lane>
void LoadElement(Warp& w, uint32_t lanes, int32_t slot, const Pointers& p, int element) {
  Lane* to = w.Write<Lane>(slot);
  if (lanes == kAllLanes) {
    for (int l = 0; l < kLanes; ++l) {
      T value;
      std::memcpy(&value, p.at[l] + element * sizeof(T), sizeof(T));
      to[l] = static_cast<Lane>(value);  // sign-extended when T is signed
    }
    return;
  }
  for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
    const int l = __builtin_ctz(rest);
    T value;
    std::memcpy(&value, p.at[l] + element * sizeof(T), sizeof(T));
    to[l] = static_cast<Lane>(value);
  }
}

// small: elements; flags: space, and 64-bit base.
template <class T, class Lane>
Signal Load(const Instruction& i, Warp& w, uint32_t lanes) {
  uint64_t addresses[kLanes];
  Pointers p;
  LaneAddresses(i, w, 1, addresses);
  const Signal signal =
      Resolve(i, w, lanes, static_cast<Space>(i.flags & 0xff), Use::kRead, sizeof(T) * i.small, addresses, &p);
  if (signal != Signal::kNext) return signal;
  if (i.small == 1) {
    LoadElement<T, Lane>(w, lanes, i.operand[0], p, 0);
  } else {
    for (int e = 0; e < i.small; ++e) LoadElement<T, Lane>(w, lanes, i.more[e], p, e);
  }
  return Signal::kNext;
}

template <class T, class Lane>
Signal Store(const Instruction& i, Warp& w, uint32_t lanes) {
  uint64_t addresses[kLanes];
  Pointers p;
  LaneAddresses(i, w, 0, addresses);
  const Space space = static_cast<Space>(i.flags & 0xff);
  const uint32_t bytes = sizeof(T) * i.small;
  const Signal signal = Resolve(i, w, lanes, space, Use::kWrite, bytes, addresses, &p);
  if (signal != Signal::kNext) return signal;
  const bool maybe_shared = w.block->shadow != nullptr &&
                            (space == Space::kShared || space == Space::kSharedCluster || space == Space::kGeneric);
  T value[16];
  for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
    const int l = __builtin_ctz(rest);
    for (int e = 0; e < i.small; ++e)
      value[e] = static_cast<T>(w.Read<Lane>(i.small == 1 ? i.operand[1] : i.more[e])[l]);
    if (maybe_shared) {
      const bool same = std::memcmp(p.at[l], value, bytes) == 0;
      const Signal check = CheckSharedWrite(i, w, l, p.at[l], bytes, same);
      if (check != Signal::kNext) return check;
    }
    std::memcpy(p.at[l], value, bytes);
  }
  return Signal::kNext;
}

Signal LoadParameter(const Instruction& i, Warp& w, uint32_t lanes) {
  const std::byte* from = w.block->run->parameters + i.immediate;
  const uint32_t element = i.flags & 0xff;
  const bool is_signed = (i.flags & 0x100) != 0, wide = (i.flags & 0x200) != 0;
  for (int e = 0; e < i.small; ++e) {
    uint64_t value = 0;
    std::memcpy(&value, from + e * element, element);
    if (is_signed && element < 8) {
      const int shift = 64 - 8 * static_cast<int>(element);
      value = static_cast<uint64_t>(static_cast<int64_t>(value << shift) >> shift);
    }
    const int32_t slot = i.small == 1 ? i.operand[0] : i.more[e];
    for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
      const int l = __builtin_ctz(rest);
      if (wide) {
        w.Write<uint64_t>(slot)[l] = value;
      } else {
        w.Write(slot)[l] = static_cast<uint32_t>(value);
      }
    }
  }
  return Signal::kNext;
}

template <class T, bool kLoad>
Handler ForRegister(int register_bits) {
  if constexpr (kLoad) return register_bits == 64 ? &Load<T, uint64_t> : &Load<T, uint32_t>;
  if constexpr (!kLoad) return register_bits == 64 ? &Store<T, uint64_t> : &Store<T, uint32_t>;
}

template <bool kLoad>
Handler ForType(Type type, int register_bits) {
  switch (type) {
    case Type::kB8:
    case Type::kU8:
      return ForRegister<uint8_t, kLoad>(register_bits);
    case Type::kS8:
      return ForRegister<int8_t, kLoad>(register_bits);
    case Type::kB16:
    case Type::kU16:
    case Type::kF16:
    case Type::kBF16:
      return ForRegister<uint16_t, kLoad>(register_bits);
    case Type::kS16:
      return ForRegister<int16_t, kLoad>(register_bits);
    case Type::kB32:
    case Type::kU32:
    case Type::kF32:
    case Type::kF16x2:
    case Type::kBF16x2:
      return ForRegister<uint32_t, kLoad>(register_bits);
    case Type::kS32:
      return ForRegister<int32_t, kLoad>(register_bits);
    case Type::kB64:
    case Type::kU64:
    case Type::kF64:
      return ForRegister<uint64_t, kLoad>(register_bits);
    case Type::kS64:
      return ForRegister<int64_t, kLoad>(register_bits);
    default:
      return nullptr;
  }
}

InstructionClass KindOf(Space space, bool load) {
  switch (space) {
    case Space::kShared:
    case Space::kSharedCluster:
      return load ? InstructionClass::kSharedLoad : InstructionClass::kSharedStore;
    case Space::kLocal:
      return InstructionClass::kLocal;
    case Space::kParam:
      return InstructionClass::kParameter;
    default:
      return load ? InstructionClass::kGlobalLoad : InstructionClass::kGlobalStore;
  }
}

}  // namespace

Handler BindMemory(Binder& b) {
  const std::string_view name = b.Part(0);
  const bool load = name == "ld" || name == "ldu";
  if (!load && name != "st") return nullptr;
  Instruction& out = b.out();
  const Type type = b.LastType();
  const Space space = SpaceOf(b);
  out.kind = KindOf(space, load);
  // A cache policy may follow as a last operand.
  const size_t expected = b.Has("L2::cache_hint") ? 3 : 2;
  if (b.Operands() != expected) return nullptr;
  const Operand& address = b.At(load ? 1 : 0);
  const Operand& value = b.At(load ? 0 : 1);
  const std::vector<Operand> single = {value};
  const std::vector<Operand>& elements = value.kind == Operand::kVector ? value.parts : single;
  const size_t count = b.Has("v2") ? 2 : b.Has("v4") ? 4 : b.Has("v8") ? 8 : 1;
  if (elements.size() != count) return nullptr;
  int register_bits = Bits(type) == 64 ? 64 : 32;
  for (const Operand& element : elements) {
    if (const int bits = b.RegisterBits(element); bits != 0) register_bits = bits == 64 ? 64 : 32;
  }
  int32_t* more = count == 1 ? nullptr : b.More(count);
  for (size_t e = 0; e < count; ++e) {
    const int32_t slot = load ? b.Destination(elements[e], register_bits) : b.Source(elements[e], register_bits);
    (count == 1 ? out.operand[load ? 0 : 1] : more[e]) = slot;
  }
  out.small = static_cast<uint8_t>(count);
  if (load && space == Space::kParam && address.kind == Operand::kAddress &&
      address.parts[0].kind == Operand::kSymbol) {
    const auto symbol = b.builder().symbols.find(address.parts[0].name);
    if (symbol == b.builder().symbols.end() || symbol->second.call_slot >= 0) return nullptr;
    const uint64_t bytes = count * Bits(type) / 8;
    if (bytes == 0 || address.offset < 0 || address.offset + bytes > symbol->second.bytes) return nullptr;
    out.immediate = static_cast<int64_t>(symbol->second.address) + address.offset;
    out.flags = static_cast<uint32_t>(Bits(type) / 8) | IsSigned(type) << 8 | (register_bits == 64) << 9;
    return &LoadParameter;
  }
  if (!load && (space == Space::kConst || space == Space::kParam)) return nullptr;
  out.flags = static_cast<uint32_t>(space);
  b.BindAddress(address, load ? 1 : 0);
  return load ? ForType<true>(type, register_bits) : ForType<false>(type, register_bits);
}

}  // namespace tessera::vgpu
