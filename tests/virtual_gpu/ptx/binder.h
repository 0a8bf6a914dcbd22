// Turns one statement into one instruction. Families of instructions (integer.cc, memory.cc, ...) each have a function
// that takes a Binder and either fills the instruction and returns its handler, or returns null: not mine, or a form
// that is not known, which becomes a fault when it is reached.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "tests/virtual_gpu/ptx/lanes.h"
#include "tests/virtual_gpu/ptx/program.h"
#include "tests/virtual_gpu/ptx/syntax.h"
#include "tests/virtual_gpu/ptx/types.h"

namespace tessera::vgpu {

// Where a named variable is, for one kernel.
struct Symbol {
  Variable::Space space = Variable::kGlobal;
  uint64_t address = 0;    // host address of globals; offset in the window, frame or parameter block otherwise
  int32_t call_slot = -1;  // of a parameter of a .func or of a call: slots of 32 bits, per lane
  uint64_t bytes = 0;
};

// What is shared by all statements of a kernel while it is being built.
class KernelBuilder {
 public:
  explicit KernelBuilder(Kernel* kernel) : kernel(*kernel) {}
  int32_t Constant(uint64_t bits, int width);  // a slot that holds it in every lane
  int32_t WarpConstantSlot(WarpConstant::Kind kind, uint64_t offset, int width);
  int32_t NewSlots(int bits);

  Kernel& kernel;
  std::map<std::string, Symbol, std::less<>> symbols;
  std::map<std::string, int32_t, std::less<>> functions;  // to the first instruction
  struct CallLayout {
    std::vector<int32_t> parameters, results;  // first slots
    std::vector<uint64_t> parameter_bytes, result_bytes;
  };
  std::map<std::string, CallLayout, std::less<>> calls;

 private:
  std::map<std::pair<uint64_t, int>, int32_t> constants_;
  std::map<std::tuple<int, uint64_t, int>, int32_t> warp_constants_;
};

class Binder {
 public:
  Binder(KernelBuilder* builder, const Function& function, const std::vector<int32_t>& register_slots,
         const Statement& statement, Instruction* out);

  std::string_view Part(size_t i) const { return i < parts_.size() ? parts_[i] : std::string_view{}; }
  size_t Parts() const { return parts_.size(); }
  bool Has(std::string_view modifier) const;
  Type LastType() const { return ParseType(parts_.back()); }
  // The types among the modifiers, in order: cvt.rn.bf16x2.f32 gives {bf16x2, f32}.
  std::vector<Type> Types() const;

  size_t Operands() const { return statement_.operands.size(); }
  const Operand& At(size_t i) const { return statement_.operands[i]; }
  const Statement& statement() const { return statement_; }
  const Function& function() const { return function_; }
  KernelBuilder& builder() { return builder_; }
  Instruction& out() { return out_; }

  int RegisterBits(const Operand& operand) const;  // 0 for what is no register
  // Slots; on refusal they return kNoSlot and ok() turns false.
  int32_t Source(const Operand& operand, int bits);
  int32_t Destination(const Operand& operand, int bits);
  bool ok() const { return ok_; }
  void Refuse() { ok_ = false; }

  // operand[0] is a result of bits[0], operand[1...] sources of bits[1...]; exactly so many operands must be there.
  bool Bind(std::initializer_list<int> bits);
  // The base address into operand[slot], the offset into immediate. Sets kBase64 in flags.
  bool BindAddress(const Operand& operand, int slot);
  static constexpr uint32_t kBase64 = 1u << 31;

  const std::vector<int32_t>& reads() const { return reads_; }
  const std::vector<int32_t>& writes() const { return writes_; }

  // Instruction lists longer than six: all operands into out().more.
  int32_t* More(size_t count);

 private:
  KernelBuilder& builder_;
  const Function& function_;
  const std::vector<int32_t>& register_slots_;
  const Statement& statement_;
  Instruction& out_;
  std::vector<std::string_view> parts_;
  std::vector<int32_t> reads_, writes_;  // slots of registers
  bool ok_ = true;
};

using Family = Handler (*)(Binder& binder);

Handler BindInteger(Binder& binder);
Handler BindBits(Binder& binder);
Handler BindFloat(Binder& binder);
Handler BindHalf(Binder& binder);
Handler BindSpecial(Binder& binder);
Handler BindCompare(Binder& binder);
Handler BindConvert(Binder& binder);
Handler BindMove(Binder& binder);
Handler BindMemory(Binder& binder);
Handler BindCallMemory(Binder& binder);
Handler BindAtomic(Binder& binder);
Handler BindControl(Binder& binder);
Handler BindBarrier(Binder& binder);
Handler BindShuffle(Binder& binder);
Handler BindMatrix(Binder& binder);
Handler BindMatrixLoad(Binder& binder);
Handler BindAsyncCopy(Binder& binder);
Handler BindBulkCopy(Binder& binder);
Handler BindMbarrier(Binder& binder);
Handler BindCluster(Binder& binder);
Handler BindWgmma(Binder& binder);

// Builds what a kernel needs to run from the module's syntax. Never fails: what cannot be bound faults when reached.
struct ModuleSymbols {
  std::map<std::string, Global, std::less<>> globals;
};
void BuildKernel(const Syntax& syntax, const Function& entry, const ModuleSymbols& symbols, Kernel* kernel);

}  // namespace tessera::vgpu
