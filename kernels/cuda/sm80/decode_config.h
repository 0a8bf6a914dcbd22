// Tile sizes of the decode kernels per cache row, and the shared memory they take. Known to the host too.
#pragma once

#include <cstdint>

namespace tessera::cuda::sm80 {

// A tile is kPairs (query row, head) pairs that read one key head. All four warps share it: each scores a quarter of
// the keys and accumulates a quarter of the value columns, so that 512 columns fit the registers. Widths are those of
// the instance; a latent cache has no values besides its keys. 99 KiB is what capabilities 8.6, 8.9 and 12.0 give a
// block.
template <int kQk, int kV, bool kLatent>
struct DecodeConfig {
  static constexpr int kKeys = kQk > 192 ? 32 : 64;
  static constexpr int kRowTiles = kLatent && kQk <= 320 ? 2 : 1;
  static constexpr int kPairs = 16 * kRowTiles;
  static constexpr int kStageBytes = 2 * kKeys * (kLatent ? kQk : kQk + kV);
  static constexpr int kWeightBytes = 2 * kPairs * kKeys;
  static constexpr int kReduceBytes = 4 * 4 * kPairs;  // one float per warp and pair
  static constexpr int kSharedBytes = 2 * kPairs * kQk + 2 * kStageBytes + kWeightBytes + kReduceBytes;
  static_assert(kSharedBytes <= 99 * 1024);
};

}  // namespace tessera::cuda::sm80
