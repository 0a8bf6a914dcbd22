#pragma once

#include <cstddef>

#include "kernels/cpu/attend.h"

namespace tessera::cpu {

// Floats of whole vectors of the widest instruction set.
inline size_t RoundUpToLanes(size_t floats) {
  return (floats + ArenaLayout::kMaxLanes - 1) / ArenaLayout::kMaxLanes * ArenaLayout::kMaxLanes;
}

}  // namespace tessera::cpu
