#include "kernels/cpu/backward_amx.h"

#include "kernels/cpu/blocks.h"
#include "kernels/cpu/lanes.h"

namespace tessera::cpu {

TileBackwardLayout::TileBackwardLayout(int64_t units, int qk_width, int v_width)
    : qk_depth(static_cast<int>(RoundUpToLanes((qk_width + 1) / 2))),
      v_depth(static_cast<int>(RoundUpToLanes((v_width + 1) / 2))),
      qk_stride(static_cast<int>(RoundUpToLanes(qk_width))),
      v_stride(static_cast<int>(RoundUpToLanes(v_width))) {
  const size_t pairs = static_cast<size_t>(units) * kUnitRows;
  constexpr size_t kKeys = kKeyBlock, kRows = kUnitRows;
  total = 0;
  const auto take = [this](size_t floats) {
    const size_t offset = total;
    total += RoundUpToLanes(floats);
    return offset;
  };
  query_columns = take(pairs * qk_depth);
  output_gradient_columns = take(pairs * v_depth);
  query_pairs = take(pairs / 2 * qk_stride);
  output_gradient_pairs = take(pairs / 2 * v_stride);
  query_gradient = take(pairs * qk_stride);
  lse = take(pairs);
  delta = take(pairs);
  poison = take(static_cast<size_t>(units) * 2);
  key = take(kKeys * qk_depth);
  value = take(kKeys * v_depth);
  key_columns = take(kKeys * qk_stride);
  key_gradient = take(2 * kKeys * qk_stride);
  value_gradient = take(2 * kKeys * v_stride);
  score = take(2 * 2 * kKeys * kRows);
  weight = take(2 * kPassUnits * kKeys * kRows);
  weight_pairs = take(kKeys * kRows);
  rows = take((2 * kRows + 1) * kKeys);
  staging = take(kRows * qk_stride);
}

size_t TileBackwardFloats(int64_t pairs, int qk_width, int v_width) {
  constexpr int64_t kRows = TileBackwardLayout::kUnitRows;
  return TileBackwardLayout((pairs + kRows - 1) / kRows, qk_width, v_width).total;
}

}  // namespace tessera::cpu
