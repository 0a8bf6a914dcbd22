#pragma once

#include <vector>

#include "tests/virtual_gpu/ptx/program.h"

namespace tessera::vgpu {

struct RegisterSlots {
  int32_t first = 0;
  int count = 1;
  bool predicate = false;
};

// Gives registers that never live at the same time the same slots, and counts how many live at once. Kernels with calls
// are left as they are.
void PackRegisters(Kernel* kernel, const std::vector<RegisterSlots>& registers);

}  // namespace tessera::vgpu
