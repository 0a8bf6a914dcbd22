// Tile sizes of the forward kernel per head width, and the shared memory they take. Known to the host too.
#pragma once

#include <cstdint>

namespace tessera::cuda::sm80 {

// Chosen so that accumulators stay in registers (255 per thread) and a block fits the 99 KiB that compute
// capability 8.6, 8.9 and 12.0 give it. Two row tiles per warp halve the shared memory traffic of keys and values.
template <int kQk, int kV>
struct AttendConfig {
  static constexpr int kRowTiles = kV > 128 ? 1 : 2;
  static constexpr int kKeys = kQk > 64 ? 32 : 64;
  static constexpr int kRows = 4 * 16 * kRowTiles;
  static constexpr int kSharedBytes = 2 * (kRows * kQk + 2 * kKeys * (kQk + kV));
  static_assert(kSharedBytes <= 99 * 1024);
};

}  // namespace tessera::cuda::sm80
