// Tile sizes of Hopper's forward kernel per head width, and the shared memory they take. Known to the host too.
#pragma once

#include <cstdint>

namespace tessera::cuda::sm90 {

// Two warpgroups of 64 query rows each. Shared memory: 227 KiB per block; registers: 255 per thread, of which kV / 2
// and kKeys / 2 are accumulators.
template <int kQk, int kV>
struct AttendConfig {
  static_assert(kQk % 64 == 0 && kV % 64 == 0);
  static constexpr int kThreads = 256;
  static constexpr int kRows = 128;
  static constexpr int kKeys = kQk > 128 ? 64 : 128;
  static constexpr int kTileBytes = 2 * (kRows * kQk + 2 * kKeys * (kQk + kV));
  static constexpr int kSharedBytes = kTileBytes + 1024;  // tiles start at multiples of 1024 bytes
  static_assert(kSharedBytes <= 227 * 1024);
};

}  // namespace tessera::cuda::sm90
