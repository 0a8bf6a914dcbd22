// Checks of arguments that every communicator makes in the same words.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "runtime/base/status.h"

namespace tessera::internal {

Status CheckPeer(int peer, int size);
// One entry per rank, none negative. `what` is the argument's name.
Status CheckCounts(std::string_view what, std::span<const int64_t> counts, int size);
Status CheckLength(std::string_view what, int64_t actual, int64_t expected);

}  // namespace tessera::internal
