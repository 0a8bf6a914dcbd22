// Tile sizes of Hopper's decode kernels per cache row, and the shared memory they take. Known to the host too.
#pragma once

#include <cstdint>

namespace tessera::cuda::sm90 {

// A tile is 64 (query row, head) pairs that read one key head, the rows of one product. A warpgroup loads; the
// computing ones, two where the values are wide enough, each score their part of the keys and accumulate their part of
// the value columns, so that 512 columns fit the registers. Widths are those of the instance; a latent cache has no
// values besides its keys, which are loaded once. 227 KiB of shared memory per block.
template <int kQk, int kV, bool kLatent>
struct DecodeConfig {
  static constexpr int kGroups = kV >= 128 ? 2 : 1;
  static constexpr int kThreads = 128 * (1 + kGroups);
  // With two, a block starts with 168 registers per thread, 64 Ki / 384; with one, it has 255.
  static constexpr int kLoadingRegisters = 56, kRegisters = 224;
  static constexpr int kPairs = 64;
  static constexpr int kKeys = 64;
  static constexpr int kStageBytes = 2 * kKeys * (kLatent ? kQk : kQk + kV);
  static constexpr int kStages = kStageBytes <= 40 * 1024 ? 4 : 2;
  static constexpr int kTileBytes = 2 * kPairs * kQk + kStages * kStageBytes + 2 * kPairs * kKeys;
  static constexpr int kReduceBytes = 4 * kGroups * kPairs;  // one float per warpgroup and pair
  static constexpr int kBarrierBytes = 8 * 2 * kStages;
  static constexpr int kSharedBytes = kTileBytes + kReduceBytes + kBarrierBytes + 1024;  // tiles start at 1024 bytes
  static_assert(kSharedBytes <= 227 * 1024);
};

}  // namespace tessera::cuda::sm90
