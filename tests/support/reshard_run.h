// Runs a random hand-over on one rank and compares its destination, byte for byte and to the last unused page, with a
// cache built directly.
#pragma once

#include <string>

#include "collectives/communicator.h"
#include "runtime/base/status.h"

namespace tessera::testing {

// Collective. The case is drawn from `name` and the size of the communicator; DataLoss when a byte or a count is wrong.
Status RunReshard(Communicator& comm, const std::string& name);

}  // namespace tessera::testing
