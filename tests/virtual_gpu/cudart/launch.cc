#include "tests/virtual_gpu/cudart/launch.h"

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "tests/virtual_gpu/cudart/kernel_counters.h"

namespace tessera::vgpu {
namespace {

constexpr uint32_t kMaxThreads = 1024;
constexpr uint32_t kPortableClusterBlocks = 8, kMaxClusterBlocks = 16;
constexpr size_t kReservedSharedBytes = 1024;  // per block, by the driver

Dim3 From(dim3 d) {
  return {d.x, d.y, d.z};
}

// The error a GPU of this kind would report for what the interpreter found.
cudaError_t CodeOf(FaultKind kind) {
  switch (kind) {
    case FaultKind::kOutOfBounds:
      return cudaErrorIllegalAddress;
    case FaultKind::kMisaligned:
      return cudaErrorMisalignedAddress;
    case FaultKind::kUnknownInstruction:
      return cudaErrorIllegalInstruction;
    case FaultKind::kNoProgress:
      return cudaErrorLaunchTimeout;
    default:
      return cudaErrorLaunchFailure;
  }
}

cudaError_t Refuse(const KernelInfo& info, cudaError_t code, const std::string& why) {
  std::fprintf(stderr, "vgpu: launch of %s refused: %s\n", info.name.c_str(), why.c_str());
  return code;
}

cudaError_t CheckShape(const Function& function, const KernelInfo& info, const Architecture& arch,
                       const LaunchShape& shape, const Dim3& cluster) {
  const Dim3 grid = From(shape.grid), block = From(shape.block);
  if (grid.Count() == 0 || grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535) {
    return Refuse(info, cudaErrorInvalidConfiguration, "the grid is empty or too large");
  }
  if (block.Count() == 0 || block.Count() > kMaxThreads || block.z > 64) {
    return Refuse(info, cudaErrorInvalidConfiguration, std::to_string(block.Count()) + " threads per block");
  }
  if (block.Count() > info.max_threads) {
    return Refuse(info, cudaErrorInvalidValue,
                  std::to_string(block.Count()) + " threads per block, but it was compiled for " +
                      std::to_string(info.max_threads));
  }
  if (shape.dynamic_shared_bytes > static_cast<size_t>(function.max_dynamic_shared_bytes) ||
      shape.dynamic_shared_bytes + info.static_shared_bytes > static_cast<size_t>(arch.shared_bytes_per_block_opt_in)) {
    return Refuse(info, cudaErrorInvalidValue,
                  std::to_string(shape.dynamic_shared_bytes) + " bytes of dynamic shared memory besides " +
                      std::to_string(info.static_shared_bytes) + " static ones, but " +
                      std::to_string(function.max_dynamic_shared_bytes) +
                      " were asked for by cudaFuncSetAttribute and a block may have " +
                      std::to_string(arch.shared_bytes_per_block_opt_in));
  }
  const uint64_t blocks = cluster.Count();
  if (blocks > 1 && arch.major < 9) return Refuse(info, cudaErrorNotSupported, "this GPU has no clusters");
  if (blocks > (function.non_portable_cluster ? kMaxClusterBlocks : kPortableClusterBlocks) ||
      grid.x % cluster.x != 0 || grid.y % cluster.y != 0 || grid.z % cluster.z != 0) {
    return Refuse(info, cudaErrorInvalidConfiguration,
                  "clusters of " + std::to_string(blocks) + " blocks are too large or do not divide the grid");
  }
  return cudaSuccess;
}

}  // namespace

const Kernel* Resolve(const Function& function, Device& device, cudaError_t* error) {
  Module* const module = function.program->ModuleFor(device, error);
  if (module == nullptr) return nullptr;
  const Kernel* const kernel = module->Find(function.name);
  if (kernel == nullptr) *error = cudaErrorInvalidDeviceFunction;
  return kernel;
}

cudaError_t LaunchKernel(Node& node, const void* host, const LaunchShape& shape, void** arguments,
                         cudaStream_t handle) {
  const Function* const function = Registry::Get().FindFunction(host);
  if (function == nullptr) return cudaErrorInvalidDeviceFunction;
  const auto stream = node.FindStream(handle);
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  Device& device = stream->device();
  cudaError_t error = cudaSuccess;
  const Kernel* const kernel = Resolve(*function, device, &error);
  if (kernel == nullptr) return error;
  const KernelInfo& info = Info(*kernel);

  Launch launch;
  launch.kernel = kernel;
  launch.grid = From(shape.grid);
  launch.block = From(shape.block);
  launch.cluster = shape.cluster.x != 0 ? From(shape.cluster) : info.required_cluster;
  if (launch.cluster.x == 0) launch.cluster = {};
  if (error = CheckShape(*function, info, device.architecture(), shape, launch.cluster); error != cudaSuccess) {
    return error;
  }
  launch.dynamic_shared_bytes = static_cast<uint32_t>(shape.dynamic_shared_bytes);
  launch.parameters.resize(info.parameter_block_bytes);
  for (size_t i = 0; i < info.parameter_offsets.size(); ++i) {
    std::memcpy(launch.parameters.data() + info.parameter_offsets[i], arguments[i], info.parameter_bytes[i]);
  }
  return Submit(node, handle, info.name, [launch = std::move(launch)](Device& d) {
    Counters counters;
    // The interpreter's locks do not order this stream's kernels against another's (order.h); what the kernel reads and
    // writes is seen by ThreadSanitizer as it is.
    const std::optional<Fault> fault = Run(launch, d.address_space(), &counters);
    const KernelInfo& kernel_info = Info(*launch.kernel);
    CountKernel(kernel_info.name, counters, launch.block.x * launch.block.y * launch.block.z,
                kernel_info.static_shared_bytes + launch.dynamic_shared_bytes);
    if (fault) d.Poison(CodeOf(fault->kind), std::string(Name(fault->kind)) + ": " + fault->message);
  });
}

int ResidentBlocks(const KernelInfo& info, const Architecture& arch, int threads, size_t dynamic_shared_bytes) {
  const int warps = (threads + 31) / 32;
  if (warps == 0) return 0;
  int blocks = std::min(arch.blocks_per_multiprocessor, arch.threads_per_multiprocessor / (32 * warps));
  const size_t shared = info.static_shared_bytes + dynamic_shared_bytes + kReservedSharedBytes;
  blocks = std::min(blocks, static_cast<int>(arch.shared_bytes_per_multiprocessor / shared));
  // Registers are given to warps in units of 256.
  if (const int registers = (info.registers * 32 + 255) / 256 * 256 * warps; registers > 0) {
    blocks = std::min(blocks, 65536 / registers);
  }
  return blocks;
}

}  // namespace tessera::vgpu
