// Tile sizes of Hopper's backward kernels per head width, and the shared memory they take. Known to the host too.
#pragma once

#include <cstdint>

namespace tessera::cuda::sm90 {

// A warpgroup that loads and two that compute, with 64 own rows each.
template <int kQk, int kV>
struct BackwardConfig {
  static_assert(kQk % 64 == 0 && kV % 64 == 0);
  static constexpr int kThreads = 3 * 128;
  static constexpr int kLoadingRegisters = 56, kRegisters = 224;
  static constexpr int kOwnRows = 128;
  // Rows that stream by at a time: as many as leave room in registers, beside accumulators of (kQk + kV) / 2 per
  // thread, and in the 227 KiB of shared memory.
  static constexpr int kOtherRows = kQk <= 64 ? 64 : 32;
  static constexpr int kStages = 2;
  static constexpr int kStageBytes = 2 * kOtherRows * (kQk + kV);
  static constexpr int kStatisticsBytes = 2 * kOtherRows * 4;  // LSE and delta of a stage
  static constexpr int kBarrierBytes = 8 * (1 + 2 * kStages);
  static constexpr int kSharedBytes = 2 * kOwnRows * (kQk + kV) + kStages * (kStageBytes + kStatisticsBytes) +
                                      kBarrierBytes + 1024;  // tiles start at multiples of 1024 bytes
  static_assert(kSharedBytes <= 227 * 1024);
  static constexpr bool kKeyAndValueTogether = kQk + kV <= 256;
};

}  // namespace tessera::cuda::sm90
