// Lays out a kernel's memory and binds its statements, and those of the functions it calls, one after the other.
#include <algorithm>
#include <set>

#include "tests/virtual_gpu/ptx/binder.h"
#include "tests/virtual_gpu/ptx/registers.h"
#include "tests/virtual_gpu/ptx/text.h"

namespace tessera::vgpu {
namespace {

constexpr Family kFamilies[] = {BindMove,     BindInteger, BindBits,       BindFloat,      BindHalf,      BindSpecial,
                                BindCompare,  BindConvert, BindCallMemory, BindMemory,     BindAtomic,    BindControl,
                                BindBarrier,  BindShuffle, BindMatrix,     BindMatrixLoad, BindAsyncCopy, BindBulkCopy,
                                BindMbarrier, BindCluster, BindWgmma};

Signal Unknown(const Instruction& i, Warp& w, uint32_t) {
  return w.Fail(i, FaultKind::kUnknownInstruction, -1,
                "the interpreter does not know this instruction, or not with these modifiers and operands");
}

uint64_t Aligned(uint64_t offset, uint64_t align) {
  return (offset + align - 1) / align * align;
}

void CollectNames(const Operand& operand, std::set<std::string>* names) {
  if (operand.kind == Operand::kSymbol) names->insert(operand.name);
  for (const Operand& part : operand.parts) CollectNames(part, names);
}

class Builder {
 public:
  Builder(const Syntax& syntax, const Function& entry, const ModuleSymbols& symbols, Kernel* kernel)
      : syntax_(syntax), entry_(entry), module_(symbols), kernel_(*kernel), builder_(kernel) {}

  void Build() {
    Reach(entry_);
    LayOut();
    for (const Function* function : functions_) {
      builder_.functions[function->name] = static_cast<int32_t>(kernel_.code.size());
      BindFunction(*function);
    }
    for (Instruction& i : kernel_.code) {  // calls to functions that come later
      if (i.target >= 0 || i.source->opcode.substr(0, 4) != "call") continue;
      for (const Operand& operand : i.source->operands) {
        const auto found = builder_.functions.find(operand.name);
        if (operand.kind == Operand::kSymbol && found != builder_.functions.end()) i.target = found->second;
      }
    }
    kernel_.info.instructions = kernel_.code.size();
    PackRegisters(&kernel_, registers_);
  }

 private:
  void Reach(const Function& function) {
    if (std::find(functions_.begin(), functions_.end(), &function) != functions_.end()) return;
    functions_.push_back(&function);
    for (const Statement& statement : function.statements) {
      for (const Operand& operand : statement.operands) CollectNames(operand, &names_);
      if (statement.opcode.substr(0, 4) != "call") continue;
      for (const Function& callee : syntax_.functions) {
        if (callee.is_declaration) continue;
        for (const Operand& operand : statement.operands) {
          if (operand.kind == Operand::kSymbol && operand.name == callee.name) Reach(callee);
        }
      }
    }
  }

  void PlaceShared(const Variable& variable, uint64_t* end) {
    *end = Aligned(*end, variable.align);
    builder_.symbols[variable.name] = {Variable::kShared, *end, -1, variable.bytes};
    *end += variable.bytes;
  }

  void LayOut() {
    for (const auto& [name, global] : module_.globals) {
      builder_.symbols[name] = {Variable::kGlobal, global.address, -1, global.bytes};
      kernel_.globals.push_back({global.address, global.address + global.bytes});
    }
    std::sort(kernel_.globals.begin(), kernel_.globals.end(),
              [](const Range& a, const Range& b) { return a.begin < b.begin; });
    uint64_t shared = 0, local = 0, dynamic_align = 1;
    for (const Variable& variable : syntax_.variables) {
      if (variable.space == Variable::kShared && variable.bytes != 0 && names_.count(variable.name) != 0) {
        PlaceShared(variable, &shared);
      }
    }
    for (const Function* function : functions_) {
      for (const Variable& variable : function->variables) {
        if (variable.space == Variable::kShared && variable.bytes != 0) PlaceShared(variable, &shared);
        if (variable.space == Variable::kLocal) {
          local = Aligned(local, variable.align);
          builder_.symbols[variable.name] = {Variable::kLocal, local, -1, variable.bytes};
          local += variable.bytes;
        }
      }
    }
    const auto dynamic = [&](const Variable& v) { return v.space == Variable::kShared && v.bytes == 0; };
    for (const Variable& variable : syntax_.variables) {
      if (dynamic(variable) && names_.count(variable.name) != 0)
        dynamic_align = std::max(dynamic_align, variable.align);
    }
    shared = Aligned(shared, dynamic_align);
    for (const Variable& variable : syntax_.variables) {
      if (dynamic(variable) && names_.count(variable.name) != 0) PlaceShared(variable, &shared);
    }
    kernel_.info.static_shared_bytes = static_cast<uint32_t>(shared);
    kernel_.local_bytes = Aligned(local, 16);
    kernel_.info.local_bytes = static_cast<uint32_t>(kernel_.local_bytes);
    for (const Variable& parameter : entry_.parameters) {
      builder_.symbols[parameter.name] = {Variable::kParam, parameter.offset, -1, parameter.bytes};
      kernel_.info.parameter_offsets.push_back(static_cast<uint32_t>(parameter.offset));
      kernel_.info.parameter_bytes.push_back(static_cast<uint32_t>(parameter.bytes));
      kernel_.info.parameter_block_bytes = static_cast<uint32_t>(parameter.offset + parameter.bytes);
    }
    kernel_.info.name = entry_.name;
    kernel_.info.max_threads = entry_.max_threads;
    kernel_.info.required_cluster = entry_.required_cluster;
    for (const Function* function : functions_) LayOutCalls(*function);
  }

  // Parameters of calls live in slots of their own: a .func is never re-entered, because recursion is not supported.
  void LayOutCalls(const Function& function) {
    const auto place = [&](const Variable& variable, std::vector<int32_t>* slots, std::vector<uint64_t>* bytes) {
      const int32_t slot = builder_.NewSlots(static_cast<int>(Aligned(variable.bytes, 4) * 8));
      builder_.symbols[variable.name] = {Variable::kParam, 0, slot, variable.bytes};
      if (slots != nullptr) slots->push_back(slot);
      if (bytes != nullptr) bytes->push_back(variable.bytes);
    };
    KernelBuilder::CallLayout& layout = builder_.calls[function.name];
    if (!function.is_entry) {
      for (const Variable& v : function.parameters) place(v, &layout.parameters, &layout.parameter_bytes);
    }
    for (const Variable& v : function.results) {
      place(v, &layout.results, &layout.result_bytes);
    }
    for (const Variable& v : function.variables) {
      if (v.space == Variable::kParam) place(v, nullptr, nullptr);
    }
  }

  void BindFunction(const Function& function) {
    std::vector<int32_t> slots;
    slots.reserve(function.registers.size());
    for (const Register& r : function.registers) {
      slots.push_back(builder_.NewSlots(r.bits));
      registers_.push_back({slots.back(), r.bits <= 32 ? 1 : r.bits / 32, r.bits == 1});
    }
    const KernelBuilder::CallLayout& layout = builder_.calls[function.name];
    // Every .func calls its result func_retval0: in its own body a name is its own.
    for (size_t r = 0; r < function.results.size(); ++r) {
      builder_.symbols[function.results[r].name] = {Variable::kParam, 0, layout.results[r], layout.result_bytes[r]};
    }
    for (size_t p = 0; p < layout.parameters.size(); ++p) {
      builder_.symbols[function.parameters[p].name] = {Variable::kParam, 0, layout.parameters[p],
                                                       layout.parameter_bytes[p]};
    }
    const int32_t base = static_cast<int32_t>(kernel_.code.size());
    for (const Statement& statement : function.statements) BindStatement(function, slots, statement);
    // Falling off the end is returning.
    static const Statement kEnd = [] {
      Statement end;
      end.text = "end of the function";
      end.opcode = "ret";
      return end;
    }();
    BindStatement(function, slots, kEnd);
    for (size_t at = base; at < kernel_.code.size(); ++at) {
      Instruction& i = kernel_.code[at];
      if (i.source->opcode.substr(0, 3) == "bra" && !i.source->operands.empty()) {
        i.target = base + i.source->operands.back().index;
      } else if (i.source->opcode.substr(0, 7) == "brx.idx") {
        const auto& table = function.branch_tables.at(i.source->operands.back().name);
        i.small = 0;
        i.immediate = static_cast<int64_t>(kernel_.branch_tables.size());
        kernel_.branch_tables.emplace_back();
        for (int target : table) kernel_.branch_tables.back().push_back(base + target);
      }
    }
  }

  void BindStatement(const Function& function, const std::vector<int32_t>& slots, const Statement& statement) {
    Instruction i;
    i.source = &statement;
    if (statement.guard >= 0) {
      i.guard = slots[statement.guard];
      i.guard_negated = statement.guard_negated;
    }
    const Instruction blank = i;
    for (Family family : kFamilies) {
      i = blank;
      Binder binder(&builder_, function, slots, statement, &i);
      Handler handler = family(binder);
      if (handler == nullptr || !binder.ok()) continue;
      i.handler = handler;
      i.touched = static_cast<uint32_t>(kernel_.touched.size());
      i.reads = static_cast<uint16_t>(binder.reads().size());
      i.writes = static_cast<uint16_t>(binder.writes().size());
      kernel_.touched.insert(kernel_.touched.end(), binder.reads().begin(), binder.reads().end());
      kernel_.touched.insert(kernel_.touched.end(), binder.writes().begin(), binder.writes().end());
      break;
    }
    if (i.handler == nullptr) {
      i = blank;
      i.handler = &Unknown;
      kernel_.info.unknown.push_back("line " + std::to_string(statement.line) + " `" + statement.text + "`");
    }
    kernel_.code.push_back(i);
  }

  const Syntax& syntax_;
  const Function& entry_;
  const ModuleSymbols& module_;
  Kernel& kernel_;
  KernelBuilder builder_;
  std::vector<const Function*> functions_;
  std::vector<RegisterSlots> registers_;
  std::set<std::string> names_;  // every symbol that is used
};

}  // namespace

void BuildKernel(const Syntax& syntax, const Function& entry, const ModuleSymbols& symbols, Kernel* kernel) {
  Builder(syntax, entry, symbols, kernel).Build();
}

}  // namespace tessera::vgpu
