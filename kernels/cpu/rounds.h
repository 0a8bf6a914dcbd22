// How the backward pass is cut into tasks that never add to the same row at the same time.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "runtime/base/geometry.h"

namespace tessera::cpu {

// Cuts `tiles` into pieces of at most `rows` query rows and `keys` key rows, drops those that no band meets, and deals
// the rest into rounds: two pieces of one round share neither query rows nor key rows. Rounds may be empty. Depends on
// its arguments alone, so the order in which a row receives its additions (round by round) does too.
std::vector<std::vector<Tile>> Rounds(std::span<const Tile> tiles, std::span<const Band> bands, int64_t rows,
                                      int64_t keys);

}  // namespace tessera::cpu
