// The fp64 reference behind the decode interface.
#pragma once

#include "kernels/decode.h"

namespace tessera::reference {

const DecodeKernel* Decoder();

}  // namespace tessera::reference
