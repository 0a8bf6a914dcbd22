// The CPU implementations: one AttentionKernel per instruction set compiled in, best first.
#pragma once

#include <vector>

#include "kernels/attention.h"

namespace tessera::cpu {

std::vector<const AttentionKernel*> Kernels();

}  // namespace tessera::cpu
