// A module: its variables in host memory, its kernels built.
#include <cstring>

#include "tests/virtual_gpu/ptx/binder.h"
#include "tests/virtual_gpu/ptx/machine.h"

namespace tessera::vgpu {

struct Module::Contents {
  Syntax syntax;  // statements are referred to by instructions
  std::vector<std::unique_ptr<std::byte[]>> storage;
  ModuleSymbols symbols;
  std::map<std::string, std::unique_ptr<Kernel>, std::less<>> kernels;
};

namespace {

constexpr uint64_t kGlobalAlign = 256;  // as cudaMalloc, more than any declaration asks for

void PlaceGlobals(Module::Contents* module) {
  for (const Variable& variable : module->syntax.variables) {
    if (variable.space != Variable::kGlobal && variable.space != Variable::kConst) continue;
    const uint64_t bytes = variable.bytes == 0 ? 1 : variable.bytes;
    module->storage.push_back(std::make_unique<std::byte[]>(bytes + kGlobalAlign));
    const uint64_t raw = reinterpret_cast<uint64_t>(module->storage.back().get());
    const uint64_t address = (raw + kGlobalAlign - 1) / kGlobalAlign * kGlobalAlign;
    if (!variable.initial.empty()) {
      std::memcpy(reinterpret_cast<void*>(address), variable.initial.data(), variable.initial.size());
    }
    module->symbols.globals[variable.name] = {address, variable.bytes, variable.space == Variable::kConst};
  }
  for (const Variable& variable : module->syntax.variables) {
    for (const auto& [offset, name] : variable.initial_addresses) {
      const auto target = module->symbols.globals.find(name);
      if (target == module->symbols.globals.end()) continue;
      const uint64_t at = module->symbols.globals[variable.name].address + offset;
      std::memcpy(reinterpret_cast<void*>(at), &target->second.address, 8);
    }
  }
}

}  // namespace

Module::Module(std::unique_ptr<Contents> contents) : contents_(std::move(contents)) {}
Module::~Module() = default;

std::unique_ptr<Module> Module::Parse(std::string_view ptx, std::string* error) {
  auto contents = std::make_unique<Contents>();
  if (!ParseSyntax(ptx, &contents->syntax, error)) return nullptr;
  PlaceGlobals(contents.get());
  for (const Function& function : contents->syntax.functions) {
    if (!function.is_entry || function.is_declaration) continue;
    auto kernel = std::make_unique<Kernel>();
    BuildKernel(contents->syntax, function, contents->symbols, kernel.get());
    contents->kernels[function.name] = std::move(kernel);
  }
  return std::unique_ptr<Module>(new Module(std::move(contents)));
}

const Kernel* Module::Find(std::string_view entry) const {
  const auto found = contents_->kernels.find(entry);
  return found == contents_->kernels.end() ? nullptr : found->second.get();
}

const Global* Module::FindGlobal(std::string_view name) const {
  const auto found = contents_->symbols.globals.find(name);
  return found == contents_->symbols.globals.end() ? nullptr : &found->second;
}

std::vector<std::string> Module::Entries() const {
  std::vector<std::string> names;
  for (const auto& [name, kernel] : contents_->kernels) names.push_back(name);
  return names;
}

const KernelInfo& Info(const Kernel& kernel) {
  return kernel.info;
}

const char* Name(FaultKind kind) {
  switch (kind) {
    case FaultKind::kUnknownInstruction:
      return "unknown instruction";
    case FaultKind::kOutOfBounds:
      return "out of bounds";
    case FaultKind::kMisaligned:
      return "misaligned";
    case FaultKind::kUninitializedShared:
      return "uninitialised shared memory";
    case FaultKind::kSharedRace:
      return "shared memory race";
    case FaultKind::kMissingWait:
      return "missing wait";
    case FaultKind::kMissingFence:
      return "missing fence";
    case FaultKind::kBarrier:
      return "barrier misuse";
    case FaultKind::kNoProgress:
      return "no progress";
    case FaultKind::kTrap:
      return "trap";
    case FaultKind::kBadLaunch:
      return "bad launch";
  }
  return "unknown fault";
}

}  // namespace tessera::vgpu
