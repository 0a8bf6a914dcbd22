// ld.param and st.param of device functions. Their parameters live in slots of 32 bits per lane, at fixed places.
#include "tests/virtual_gpu/ptx/binder.h"

namespace tessera::vgpu {
namespace {

// small: elements; flags: element bytes, signed, 64-bit registers; immediate: byte offset; operand[1]: first slot.
constexpr uint32_t kSigned = 0x100, kWide = 0x200;

uint64_t Get(const Warp& w, int32_t first, uint64_t offset, uint32_t bytes, int lane) {
  uint64_t value = 0;
  for (uint32_t byte = 0; byte < bytes; ++byte) {
    const uint64_t at = offset + byte;
    value |= uint64_t{w.Read(first + static_cast<int32_t>(at / 4))[lane] >> (8 * (at % 4)) & 0xff} << (8 * byte);
  }
  return value;
}

void Put(Warp& w, int32_t first, uint64_t offset, uint32_t bytes, int lane, uint64_t value) {
  for (uint32_t byte = 0; byte < bytes; ++byte) {
    const uint64_t at = offset + byte;
    uint32_t& word = w.Write(first + static_cast<int32_t>(at / 4))[lane];
    const uint32_t shift = 8 * (at % 4);
    word = (word & ~(0xffu << shift)) | static_cast<uint32_t>(value >> (8 * byte) & 0xff) << shift;
  }
}

Signal LoadSlots(const Instruction& i, Warp& w, uint32_t lanes) {
  const uint32_t bytes = i.flags & 0xff;
  for (int e = 0; e < i.small; ++e) {
    for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
      const int l = __builtin_ctz(rest);
      uint64_t value = Get(w, i.operand[1], i.immediate + e * bytes, bytes, l);
      if ((i.flags & kSigned) != 0 && bytes < 8) {
        const int shift = 64 - 8 * static_cast<int>(bytes);
        value = static_cast<uint64_t>(static_cast<int64_t>(value << shift) >> shift);
      }
      if ((i.flags & kWide) != 0) {
        w.Write<uint64_t>(i.more[e])[l] = value;
      } else {
        w.Write(i.more[e])[l] = static_cast<uint32_t>(value);
      }
    }
  }
  return Signal::kNext;
}

Signal StoreSlots(const Instruction& i, Warp& w, uint32_t lanes) {
  const uint32_t bytes = i.flags & 0xff;
  for (int e = 0; e < i.small; ++e) {
    for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
      const int l = __builtin_ctz(rest);
      const uint64_t value = (i.flags & kWide) != 0 ? w.Read<uint64_t>(i.more[e])[l] : w.Read(i.more[e])[l];
      Put(w, i.operand[1], i.immediate + e * bytes, bytes, l, value);
    }
  }
  return Signal::kNext;
}

// more: pairs of slots (to, from), small of them; flags: how many are copied before the call.
Signal Call(const Instruction& i, Warp& w, uint32_t lanes) {
  for (int c = 0; c < i.small; ++c) Blend(w.Write(i.more[2 * c]), w.Read(i.more[2 * c + 1]), lanes);
  return Signal::kCall;
}

Handler BindCall(Binder& b) {
  // call (results), name, (parameters); results and parameters may be missing.
  const Operand* name = nullptr;
  const Operand* results = nullptr;
  const Operand* parameters = nullptr;
  for (size_t o = 0; o < b.Operands(); ++o) {
    if (b.At(o).kind == Operand::kSymbol && name == nullptr) {
      name = &b.At(o);
    } else if (b.At(o).kind == Operand::kVector) {
      (name == nullptr ? results : parameters) = &b.At(o);
    }
  }
  KernelBuilder& builder = b.builder();
  if (name == nullptr) return nullptr;
  const auto layout = builder.calls.find(name->name);
  if (layout == builder.calls.end()) return nullptr;
  std::vector<std::pair<int32_t, int32_t>> copies;
  const size_t given = parameters == nullptr ? 0 : parameters->parts.size();
  if (given != layout->second.parameters.size()) return nullptr;
  for (size_t p = 0; p < given; ++p) {
    const auto symbol = builder.symbols.find(parameters->parts[p].name);
    if (symbol == builder.symbols.end() || symbol->second.call_slot < 0) return nullptr;
    for (uint64_t word = 0; word * 4 < layout->second.parameter_bytes[p]; ++word) {
      copies.emplace_back(layout->second.parameters[p] + word, symbol->second.call_slot + word);
    }
  }
  // Results are read where the callee left them: the caller's name for them becomes another name of those slots.
  if (results != nullptr) {
    if (results->parts.size() != layout->second.results.size()) return nullptr;
    for (size_t r = 0; r < results->parts.size(); ++r) {
      builder.symbols[results->parts[r].name].call_slot = layout->second.results[r];
    }
  }
  if (copies.size() > 255) return nullptr;
  int32_t* more = b.More(2 * copies.size() + 1);
  for (size_t c = 0; c < copies.size(); ++c) {
    more[2 * c] = copies[c].first;
    more[2 * c + 1] = copies[c].second;
  }
  b.out().small = static_cast<uint8_t>(copies.size());
  return &Call;
}

}  // namespace

Handler BindCallMemory(Binder& b) {
  const std::string_view name = b.Part(0);
  if (name == "call") {
    b.out().kind = InstructionClass::kControl;
    return BindCall(b);
  }
  const bool load = name == "ld";
  if ((!load && name != "st") || (b.Part(1) != "param" && b.Part(1) != "param::func") || b.Operands() != 2)
    return nullptr;
  const Operand& address = b.At(load ? 1 : 0);
  const Operand& value = b.At(load ? 0 : 1);
  if (address.kind != Operand::kAddress || address.parts[0].kind != Operand::kSymbol) return nullptr;
  const auto symbol = b.builder().symbols.find(address.parts[0].name);
  if (symbol == b.builder().symbols.end() || symbol->second.call_slot < 0) return nullptr;
  const Type type = b.LastType();
  const std::vector<Operand> single = {value};
  const std::vector<Operand>& elements = value.kind == Operand::kVector ? value.parts : single;
  int register_bits = Bits(type) == 64 ? 64 : 32;
  if (const int bits = b.RegisterBits(elements[0]); bits != 0) register_bits = bits == 64 ? 64 : 32;
  const uint64_t bytes = Bits(type) / 8;
  if (bytes == 0 || address.offset < 0 || address.offset + bytes * elements.size() > symbol->second.bytes)
    return nullptr;
  Instruction& out = b.out();
  out.kind = InstructionClass::kParameter;
  int32_t* more = b.More(elements.size());
  for (size_t e = 0; e < elements.size(); ++e) {
    more[e] = load ? b.Destination(elements[e], register_bits) : b.Source(elements[e], register_bits);
  }
  out.small = static_cast<uint8_t>(elements.size());
  out.flags = static_cast<uint32_t>(bytes) | (IsSigned(type) ? kSigned : 0) | (register_bits == 64 ? kWide : 0);
  out.immediate = address.offset;
  out.operand[1] = symbol->second.call_slot;
  return load ? &LoadSlots : &StoreSlots;
}

}  // namespace tessera::vgpu
