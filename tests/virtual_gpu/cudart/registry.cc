#include "tests/virtual_gpu/cudart/registry.h"

#include <cstdio>

namespace tessera::vgpu {

Module* Program::ModuleFor(Device& device, cudaError_t* error) {
  const std::lock_guard lock(mutex_);
  const auto [it, is_new] = loaded_.try_emplace(device.index());
  if (is_new) it->second = Load(device);
  *error = it->second.error;
  return it->second.module.get();
}

Program::Loaded Program::Load(Device& device) const {
  const Architecture& arch = device.architecture();
  const PtxImage* const image = binary_.For(arch.major * 10 + arch.minor);
  if (image == nullptr) {
    std::fprintf(stderr, "vgpu: no PTX for compute capability %d.%d; the program has %s%s%s\n", arch.major, arch.minor,
                 binary_.Describe().c_str(), binary_.error.empty() ? "" : "; ", binary_.error.c_str());
    return {nullptr, cudaErrorNoKernelImageForDevice};
  }
  std::string error;
  std::unique_ptr<Module> module = Module::Parse(image->text, &error);
  if (module == nullptr) {
    std::fprintf(stderr, "vgpu: the PTX for %d cannot be read: %s\n", image->architecture, error.c_str());
    return {nullptr, cudaErrorInvalidPtx};
  }
  return {std::move(module), cudaSuccess};
}

Registry& Registry::Get() {
  static Registry* const registry = new Registry;
  return *registry;
}

Program* Registry::AddProgram(const void* wrapper) {
  const std::lock_guard lock(mutex_);
  programs_.push_back(std::make_unique<Program>(ReadFatBinary(wrapper)));
  return programs_.back().get();
}

void Registry::AddFunction(const void* host, Function function) {
  const std::lock_guard lock(mutex_);
  functions_[host] = std::move(function);
}

void Registry::AddVariable(const void* host, Variable variable) {
  const std::lock_guard lock(mutex_);
  variables_[host] = std::move(variable);
}

Function* Registry::FindFunction(const void* host) {
  const std::lock_guard lock(mutex_);
  const auto it = functions_.find(host);
  return it == functions_.end() ? nullptr : &it->second;
}

const Variable* Registry::FindVariable(const void* host) {
  const std::lock_guard lock(mutex_);
  const auto it = variables_.find(host);
  return it == variables_.end() ? nullptr : &it->second;
}

}  // namespace tessera::vgpu
