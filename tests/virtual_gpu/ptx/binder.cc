#include "tests/virtual_gpu/ptx/binder.h"

#include <algorithm>

#include "tests/virtual_gpu/ptx/text.h"

namespace tessera::vgpu {
namespace {

struct SpecialName {
  std::string_view name;
  WarpConstant::Kind kind;
};

using C = WarpConstant;
constexpr SpecialName kSpecials[] = {
    {"%tid.x", C::kTidX},
    {"%tid.y", C::kTidY},
    {"%tid.z", C::kTidZ},
    {"%ntid.x", C::kNtidX},
    {"%ntid.y", C::kNtidY},
    {"%ntid.z", C::kNtidZ},
    {"%ctaid.x", C::kCtaX},
    {"%ctaid.y", C::kCtaY},
    {"%ctaid.z", C::kCtaZ},
    {"%nctaid.x", C::kNctaX},
    {"%nctaid.y", C::kNctaY},
    {"%nctaid.z", C::kNctaZ},
    {"%laneid", C::kLane},
    {"%warpid", C::kWarp},
    {"%nwarpid", C::kWarps},
    {"%lanemask_eq", C::kLanesEq},
    {"%lanemask_lt", C::kLanesLt},
    {"%lanemask_le", C::kLanesLe},
    {"%lanemask_gt", C::kLanesGt},
    {"%lanemask_ge", C::kLanesGe},
    {"%clusterid.x", C::kClusterX},
    {"%clusterid.y", C::kClusterY},
    {"%clusterid.z", C::kClusterZ},
    {"%nclusterid.x", C::kClustersX},
    {"%nclusterid.y", C::kClustersY},
    {"%nclusterid.z", C::kClustersZ},
    {"%cluster_ctaid.x", C::kClusterCtaX},
    {"%cluster_ctaid.y", C::kClusterCtaY},
    {"%cluster_ctaid.z", C::kClusterCtaZ},
    {"%cluster_nctaid.x", C::kClusterNctaX},
    {"%cluster_nctaid.y", C::kClusterNctaY},
    {"%cluster_nctaid.z", C::kClusterNctaZ},
    {"%cluster_ctarank", C::kClusterCtaRank},
    {"%cluster_nctarank", C::kClusterNctaRank},
    {"%is_explicit_cluster", C::kIsExplicitCluster},
    {"%smid", C::kSmId},
    {"%nsmid", C::kSmCount},
    {"%gridid", C::kGridId},
    {"%total_smem_size", C::kTotalShared},
    {"%dynamic_smem_size", C::kDynamicShared},
};

}  // namespace

int32_t KernelBuilder::NewSlots(int bits) {
  const int32_t first = kernel.slots;
  kernel.slots += bits <= 32 ? 1 : bits / 32;
  return first;
}

int32_t KernelBuilder::Constant(uint64_t bits, int width) {
  const int size = width == 64 ? 64 : 32;
  if (size == 32) bits = static_cast<uint32_t>(bits);
  const auto [found, added] = constants_.try_emplace({bits, size}, static_cast<int32_t>(kernel.constants.size()));
  if (added) {
    kernel.constants.resize(kernel.constants.size() + size / 32);
    Slot* slot = &kernel.constants[found->second];
    for (int l = 0; l < kLanes; ++l) {
      if (size == 64) {
        reinterpret_cast<uint64_t*>(slot)[l] = bits;
      } else {
        slot->lane[l] = static_cast<uint32_t>(bits);
      }
    }
  }
  return ~found->second;
}

int32_t KernelBuilder::WarpConstantSlot(WarpConstant::Kind kind, uint64_t offset, int width) {
  const int size = width == 64 ? 64 : 32;
  const auto [found, added] = warp_constants_.try_emplace({kind, offset, size}, 0);
  if (added) {
    found->second = NewSlots(size);
    kernel.warp_constants.push_back({kind, offset, size, found->second});
  }
  return found->second;
}

Binder::Binder(KernelBuilder* builder, const Function& function, const std::vector<int32_t>& register_slots,
               const Statement& statement, Instruction* out)
    : builder_(*builder), function_(function), register_slots_(register_slots), statement_(statement), out_(*out) {
  parts_ = Split(statement.opcode, '.');
}

bool Binder::Has(std::string_view modifier) const {
  return std::find(parts_.begin() + 1, parts_.end(), modifier) != parts_.end();
}

std::vector<Type> Binder::Types() const {
  std::vector<Type> types;
  for (std::string_view part : parts_) {
    if (const Type type = ParseType(part); type != Type::kNone) types.push_back(type);
  }
  return types;
}

int Binder::RegisterBits(const Operand& operand) const {
  return operand.kind == Operand::kRegister ? function_.registers[operand.index].bits : 0;
}

int32_t Binder::Source(const Operand& operand, int bits) {
  const bool wide = bits == 64;
  switch (operand.kind) {
    case Operand::kRegister:
      if (operand.negated || (RegisterBits(operand) == 64) != wide || (RegisterBits(operand) == 128) != (bits == 128))
        break;
      for (int s = 0; s < std::max(bits / 32, 1); ++s) reads_.push_back(register_slots_[operand.index] + s);
      return register_slots_[operand.index];
    case Operand::kImmediate:
      if (operand.negated) break;
      if (bits == 1) return builder_.Constant(operand.bits != 0 ? ~uint64_t{0} : 0, 32);
      // Narrow values are zero-extended in their lanes.
      return builder_.Constant(bits == 16 ? operand.bits & 0xffff : operand.bits, bits);
    case Operand::kSpecial:
      for (const SpecialName& special : kSpecials) {
        if (special.name == operand.name) return builder_.WarpConstantSlot(special.kind, 0, bits);
      }
      break;
    case Operand::kSymbol: {
      const auto found = builder_.symbols.find(operand.name);
      if (found == builder_.symbols.end() || found->second.call_slot >= 0 || bits < 32) break;
      const uint64_t address = found->second.address + operand.offset;
      switch (found->second.space) {
        case Variable::kShared:
          return builder_.Constant(kSharedBase + address, bits);
        case Variable::kLocal:
          if (wide) return builder_.WarpConstantSlot(WarpConstant::kLocalAddress, address, 64);
          break;
        case Variable::kParam:
          if (wide) return builder_.WarpConstantSlot(WarpConstant::kParameterAddress, address, 64);
          break;
        default:
          if (wide) return builder_.Constant(address, 64);
      }
      break;
    }
    default:
      break;
  }
  Refuse();
  return Instruction::kNoSlot;
}

int32_t Binder::Destination(const Operand& operand, int bits) {
  if (operand.kind == Operand::kSink) return builder_.NewSlots(bits);
  const int have = RegisterBits(operand);
  if (have == 0 || (have == 64) != (bits == 64) || (have == 128) != (bits == 128)) {
    Refuse();
    return Instruction::kNoSlot;
  }
  for (int s = 0; s < std::max(bits / 32, 1); ++s) writes_.push_back(register_slots_[operand.index] + s);
  return register_slots_[operand.index];
}

bool Binder::Bind(std::initializer_list<int> bits) {
  if (Operands() != bits.size() || bits.size() > out_.operand.size()) {
    Refuse();
    return false;
  }
  size_t i = 0;
  for (int width : bits) {
    out_.operand[i] = i == 0 ? Destination(At(i), width) : Source(At(i), width);
    ++i;
  }
  out_.operand_count = static_cast<uint8_t>(i);
  return ok_;
}

bool Binder::BindAddress(const Operand& operand, int slot) {
  if (operand.kind != Operand::kAddress) {
    Refuse();
    return false;
  }
  const Operand& base = operand.parts[0];
  int bits = RegisterBits(base);
  if (bits == 0) {
    bits = 64;
    if (base.kind == Operand::kSymbol) {
      const auto found = builder_.symbols.find(base.name);
      if (found != builder_.symbols.end() && found->second.space == Variable::kShared) bits = 32;
    }
  }
  out_.operand[slot] = Source(base, bits);
  // An immediate base was counted into the offset by the parser: only one of the two may keep it.
  out_.immediate = base.kind == Operand::kImmediate ? 0 : operand.offset;
  if (bits == 64) out_.flags |= kBase64;
  return ok_;
}

int32_t* Binder::More(size_t count) {
  auto& lists = builder_.kernel.operand_lists;
  lists.emplace_back(std::make_unique<int32_t[]>(count), count);
  std::fill_n(lists.back().first.get(), count, Instruction::kNoSlot);
  out_.more = lists.back().first.get();
  return lists.back().first.get();
}

}  // namespace tessera::vgpu
