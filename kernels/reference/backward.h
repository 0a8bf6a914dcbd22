// AttendBackward in fp64, for the reference kernel.
#pragma once

#include "kernels/attention_backward.h"

namespace tessera::reference {

// Sums in fp64 over all tiles of the call, then adds to the gradients once.
Status AttendBackward(const AttendBackwardArgs& args);

}  // namespace tessera::reference
