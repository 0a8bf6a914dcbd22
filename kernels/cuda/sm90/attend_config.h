// Tile sizes of Hopper's forward kernel per head width, and the shared memory they take. Known to the host too.
#pragma once

#include <cstdint>

namespace tessera::cuda::sm90 {

// A warpgroup that loads and two that compute 64 query rows each. Shared memory: 227 KiB per block, of which two tiles
// of keys and two of values are a ring. Registers: a block starts with 168 per thread, 64 Ki / 384; a computing thread
// takes up to 240, of which kV / 2 and kKeys / 2 are accumulators and kKeys / 4 weights.
template <int kQk, int kV>
struct AttendConfig {
  static_assert(kQk % 64 == 0 && kV % 64 == 0);
  static constexpr int kThreads = 3 * 128;
  static constexpr int kEngineRegisters = 32, kRegisters = 240;
  static constexpr int kCopyRegisters = 56, kRegistersBesideCopies = 224;
  static constexpr int kRows = 128;
  static constexpr int kKeys = kQk > 128 ? 64 : 128;
  static constexpr int kStages = 2;
  static constexpr int kTileBytes = 2 * (kRows * kQk + kStages * kKeys * (kQk + kV));
  static constexpr int kBarrierBytes = 8 * (1 + 4 * kStages);
  static constexpr int kSharedBytes = kTileBytes + kBarrierBytes + 1024;  // tiles start at multiples of 1024 bytes
  static_assert(kSharedBytes <= 227 * 1024);
};

}  // namespace tessera::cuda::sm90
