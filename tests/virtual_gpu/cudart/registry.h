// The kernels and variables that the program's static initialisers register.
#pragma once

#include <cuda_runtime_api.h>

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "tests/virtual_gpu/cudart/device.h"
#include "tests/virtual_gpu/cudart/fat_binary.h"
#include "tests/virtual_gpu/ptx/machine.h"

namespace tessera::vgpu {

// One translation unit. Its PTX is parsed when a device first needs it.
class Program {
 public:
  explicit Program(FatBinary binary) : binary_(std::move(binary)) {}
  // The module for a device; null and an error of the launch when there is none. The reason goes to stderr once.
  Module* ModuleFor(Device& device, cudaError_t* error);

 private:
  struct Loaded {
    std::unique_ptr<Module> module;
    cudaError_t error = cudaSuccess;
  };
  Loaded Load(Device& device) const;
  const FatBinary binary_;
  std::mutex mutex_;
  std::map<int, Loaded> loaded_;  // by device
};

struct Function {
  Program* program = nullptr;
  std::string name;
  // cudaFuncAttributeMaxDynamicSharedMemorySize and cudaFuncAttributeNonPortableClusterSizeAllowed.
  int max_dynamic_shared_bytes = 48 << 10;
  bool non_portable_cluster = false;
};

struct Variable {
  Program* program = nullptr;
  std::string name;
  size_t bytes = 0;
};

class Registry {
 public:
  static Registry& Get();
  Program* AddProgram(const void* wrapper);
  void AddFunction(const void* host, Function function);
  void AddVariable(const void* host, Variable variable);
  Function* FindFunction(const void* host);  // null when there is none
  const Variable* FindVariable(const void* host);

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<Program>> programs_;
  std::map<const void*, Function> functions_;
  std::map<const void*, Variable> variables_;
};

}  // namespace tessera::vgpu
