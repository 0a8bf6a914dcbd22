// The AMX kernels over a tile unit that is a program: what they compute is tested on processors without tiles.
#pragma once

#include "kernels/attention.h"
#include "kernels/decode.h"

namespace tessera::testing {

// "amx-in-software"; null where the processor lacks the AVX-512 that works beside the tiles.
const AttentionKernel* SoftwareAmxKernel();
const DecodeKernel* SoftwareAmxDecoder();

}  // namespace tessera::testing
