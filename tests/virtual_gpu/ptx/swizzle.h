// The permutations of 16-byte chunks by which TMA writes and wgmma reads shared memory without bank conflicts.
#pragma once

#include <cstdint>

#include "tests/virtual_gpu/ptx/tensor_map.h"

namespace tessera::vgpu {

// Address bits 4 and up are xor-ed with bits 7 and up: one bit within 32 bytes, two within 64, three within 128.
inline uint32_t Swizzled(uint32_t address, Swizzle mode) {
  const uint32_t bits = (1u << static_cast<int>(mode)) - 1;
  return address ^ ((address >> 7 & bits) << 4);
}

}  // namespace tessera::vgpu
