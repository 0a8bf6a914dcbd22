// Kernel launches: what a driver checks when they are submitted, and running them in the PTX interpreter.
#pragma once

#include <cuda_runtime_api.h>

#include "tests/virtual_gpu/cudart/node.h"
#include "tests/virtual_gpu/cudart/registry.h"

namespace tessera::vgpu {

struct LaunchShape {
  dim3 grid, block;
  dim3 cluster{0, 0, 0};  // zero: as the kernel says, otherwise 1
  size_t dynamic_shared_bytes = 0;
};

// The kernel of a registered function on a device, null with an error when there is none.
const Kernel* Resolve(const Function& function, Device& device, cudaError_t* error);

cudaError_t LaunchKernel(Node& node, const void* function, const LaunchShape& shape, void** arguments,
                         cudaStream_t stream);

// Blocks of this kernel that fit one multiprocessor at a time.
int ResidentBlocks(const KernelInfo& info, const Architecture& architecture, int threads, size_t dynamic_shared_bytes);

}  // namespace tessera::vgpu
