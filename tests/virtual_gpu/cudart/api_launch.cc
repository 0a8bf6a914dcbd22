// Kernels: registration by the code that nvcc generates, launches, attributes, occupancy.
#include <algorithm>
#include <cstring>

#include "tests/virtual_gpu/cudart/launch.h"

using namespace tessera::vgpu;

namespace {

struct CallConfiguration {
  LaunchShape shape;
  cudaStream_t stream;
};
std::vector<CallConfiguration>& Configurations() {
  thread_local std::vector<CallConfiguration> configurations;
  return configurations;
}

// Runs `body` with the registered function of a host address and its kernel on the current device.
template <typename Body>
cudaError_t WithKernel(const void* host, Body&& body) {
  return Call([&](Node& node) {
    Function* const function = Registry::Get().FindFunction(host);
    if (function == nullptr) return cudaErrorInvalidDeviceFunction;
    cudaError_t error = cudaSuccess;
    const Kernel* const kernel = Resolve(*function, node.current(), &error);
    return kernel == nullptr ? error : body(node.current(), *function, Info(*kernel));
  });
}

cudaError_t ReadAttributes(const cudaLaunchConfig_t& config, LaunchShape* shape) {
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    const cudaLaunchAttribute& attribute = config.attrs[i];
    switch (attribute.id) {
      case cudaLaunchAttributeClusterDimension:
        shape->cluster = {attribute.val.clusterDim.x, attribute.val.clusterDim.y, attribute.val.clusterDim.z};
        break;
      // Hints, and permission to overlap with the kernel before, which need not be used.
      case cudaLaunchAttributeIgnore:
      case cudaLaunchAttributePriority:
      case cudaLaunchAttributeProgrammaticStreamSerialization:
        break;
      default:
        return cudaErrorNotSupported;
    }
  }
  return cudaSuccess;
}

}  // namespace

extern "C" {

void** __cudaRegisterFatBinary(void* wrapper) {
  return reinterpret_cast<void**>(Registry::Get().AddProgram(wrapper));
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) {
  return 1;
}

void __cudaRegisterFunction(void** program, const char* host, char*, const char* name, int, uint3*, uint3*, dim3*,
                            dim3*, int*) {
  Function function;
  function.program = reinterpret_cast<Program*>(program);
  function.name = name;
  Registry::Get().AddFunction(host, std::move(function));
}

void __cudaRegisterVar(void** program, char* host, char*, const char* name, int, size_t bytes, int, int) {
  Registry::Get().AddVariable(host, {reinterpret_cast<Program*>(program), name, bytes});
}

cudaError_t __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream) {
  Configurations().push_back({{grid, block, {0, 0, 0}, shared_bytes}, stream});
  return cudaSuccess;
}

cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared_bytes, void* stream) {
  if (Configurations().empty()) return Note(cudaErrorMissingConfiguration);
  const CallConfiguration configuration = Configurations().back();
  Configurations().pop_back();
  *grid = configuration.shape.grid;
  *block = configuration.shape.block;
  *shared_bytes = configuration.shape.dynamic_shared_bytes;
  std::memcpy(stream, &configuration.stream, sizeof configuration.stream);
  return cudaSuccess;
}

// A kernel's handle is its host address.
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* host) {
  *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void*>(host));
  return cudaSuccess;
}

cudaError_t cudaLaunchKernel(const void* host, dim3 grid, dim3 block, void** arguments, size_t shared_bytes,
                             cudaStream_t stream) {
  return Call([&](Node& node) {
    return LaunchKernel(node, host, {grid, block, {0, 0, 0}, shared_bytes}, arguments, stream);
  });
}

cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments, size_t shared_bytes,
                               cudaStream_t stream) {
  return cudaLaunchKernel(kernel, grid, block, arguments, shared_bytes, stream);
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* host, void** arguments) {
  return Call([&](Node& node) {
    LaunchShape shape{config->gridDim, config->blockDim, {0, 0, 0}, config->dynamicSmemBytes};
    if (const cudaError_t error = ReadAttributes(*config, &shape); error != cudaSuccess) return error;
    return LaunchKernel(node, host, shape, arguments, config->stream);
  });
}

cudaError_t cudaFuncSetAttribute(const void* host, cudaFuncAttribute attribute, int value) {
  return WithKernel(host, [&](Device& device, Function& function, const KernelInfo& info) {
    switch (attribute) {
      case cudaFuncAttributeMaxDynamicSharedMemorySize:
        if (value < 0 ||
            value + static_cast<int>(info.static_shared_bytes) > device.architecture().shared_bytes_per_block_opt_in) {
          return cudaErrorInvalidValue;
        }
        function.max_dynamic_shared_bytes = value;
        return cudaSuccess;
      case cudaFuncAttributeNonPortableClusterSizeAllowed:
        function.non_portable_cluster = value != 0;
        return cudaSuccess;
      case cudaFuncAttributePreferredSharedMemoryCarveout:
        return value >= -1 && value <= 100 ? cudaSuccess : cudaErrorInvalidValue;
      default:
        return cudaErrorInvalidValue;
    }
  });
}

cudaError_t cudaFuncSetCacheConfig(const void* host, cudaFuncCache) {
  return WithKernel(host, [](Device&, Function&, const KernelInfo&) { return cudaSuccess; });
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* host) {
  return WithKernel(host, [&](Device& device, Function& function, const KernelInfo& info) {
    std::memset(attributes, 0, sizeof *attributes);
    attributes->sharedSizeBytes = info.static_shared_bytes;
    attributes->localSizeBytes = info.local_bytes;
    attributes->maxThreadsPerBlock = static_cast<int>(info.max_threads);
    attributes->numRegs = info.registers;
    attributes->ptxVersion = attributes->binaryVersion = device.architecture().major * 10 + device.architecture().minor;
    attributes->maxDynamicSharedSizeBytes = function.max_dynamic_shared_bytes;
    return cudaSuccess;
  });
}

cudaError_t cudaFuncGetName(const char** name, const void* host) {
  return WithKernel(host, [&](Device&, Function& function, const KernelInfo&) {
    *name = function.name.c_str();
    return cudaSuccess;
  });
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void* host, int threads,
                                                                   size_t dynamic_shared_bytes, unsigned) {
  return WithKernel(host, [&](Device& device, Function&, const KernelInfo& info) {
    *blocks = ResidentBlocks(info, device.architecture(), threads, dynamic_shared_bytes);
    return cudaSuccess;
  });
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* host, int threads,
                                                          size_t dynamic_shared_bytes) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, host, threads, dynamic_shared_bytes, 0);
}

}  // extern "C"
