// What all launches of every kernel did, written to VGPU_COUNTERS when the process ends.
#pragma once

#include <string>

#include "tests/virtual_gpu/ptx/counters.h"

namespace tessera::vgpu {

void CountKernel(const std::string& kernel, const Counters& counters);

}  // namespace tessera::vgpu
