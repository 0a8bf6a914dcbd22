// What all launches of every kernel did, written to VGPU_COUNTERS when the process ends.
#pragma once

#include <cstdint>
#include <string>

#include "tests/virtual_gpu/ptx/counters.h"

namespace tessera::vgpu {

// `threads` and `shared_bytes` (static and dynamic) of one block.
void CountKernel(const std::string& kernel, const Counters& counters, uint32_t threads, uint64_t shared_bytes);

}  // namespace tessera::vgpu
