// Tile sizes of the backward kernels per head width, and the shared memory they take. Known to the host too.
#pragma once

#include <cstdint>

namespace tessera::cuda::sm80 {

template <int kQk, int kV>
struct BackwardConfig {
  static constexpr int kOwnRows = 64;  // four warps of 16
  // Rows that stream by at a time: as many as leave room in registers (below 256) and in shared memory (99 KiB).
  static constexpr int kOtherRows = kQk <= 64 ? 64 : kQk + kV <= 256 ? 32 : 16;
  static constexpr int kStageBytes = 2 * kOtherRows * (kQk + kV) + 2 * kOtherRows * 4;  // rows, LSE and delta
  static constexpr int kSharedBytes = 2 * kOwnRows * (kQk + kV) + 2 * kStageBytes;
  static_assert(kSharedBytes <= 99 * 1024);
  // Accumulators of both gradients of 16 rows are (kQk + kV) / 2 registers per thread.
  static constexpr bool kKeyAndValueTogether = kQk + kV <= 320;
};

}  // namespace tessera::cuda::sm80
