// The AMX kernel over a tile unit that is a program: what it computes is tested on processors without tiles.
#pragma once

#include "kernels/attention.h"

namespace tessera::testing {

// "amx-in-software"; null where the processor lacks the AVX-512 that works beside the tiles.
const AttentionKernel* SoftwareAmxKernel();

}  // namespace tessera::testing
