#include "kernels/cpu/backward.h"

#include <hwy/aligned_allocator.h>

#include <algorithm>
#include <atomic>
#include <string>

#include "kernels/check.h"
#include "kernels/cpu/attend.h"
#include "kernels/cpu/lanes.h"
#include "kernels/cpu/rounds.h"

namespace tessera::cpu {
namespace {

struct PieceSize {
  int64_t rows = 0;
  int64_t keys = 0;
};

// Query rows enough that packing a key block is a few percent of using it, few enough that queries and both their
// gradients stay in a 1 MiB L2 cache; keys enough that loading the query side is a few percent too. Smaller where a
// round would have fewer than kTasksPerRound tasks, whatever the number of threads: it may not change the order of
// additions.
PieceSize SizeOfPieces(const AttendBackwardArgs& args, int tile_rows) {
  constexpr int64_t kFloats = 64 * 1024;
  constexpr int64_t kMostKeys = 512, kFewestKeys = 2 * kKeyBlock, kFewestPairs = 96;
  constexpr int64_t kTasksPerRound = 16;
  const int64_t group = std::clamp(args.group, 1, std::max(1, args.query.heads));
  const int64_t chunks = (kTasksPerRound + args.key.heads - 1) / std::max(1, args.key.heads);
  int64_t rows = 0, keys = 0;
  for (const Tile& tile : args.tiles) {
    rows = std::max(rows, tile.queries.count);
    keys = std::max(keys, tile.keys.count);
  }
  const int64_t cached = std::clamp<int64_t>(kFloats / (args.query.width + args.value.width), kFewestPairs, 768);
  const int64_t pairs = std::clamp<int64_t>(rows * group / chunks, kFewestPairs, cached);
  const int64_t keys_wanted = std::clamp<int64_t>(keys / chunks, kFewestKeys, kMostKeys);
  return {std::max<int64_t>(1, pairs / tile_rows * tile_rows / group), keys_wanted / kKeyBlock * kKeyBlock};
}

}  // namespace

BackwardLayout::BackwardLayout(int64_t blocks, int qk_width, int v_width)
    : qk_stride(static_cast<int>(RoundUpToLanes(qk_width))), v_stride(static_cast<int>(RoundUpToLanes(v_width))) {
  const size_t pairs = static_cast<size_t>(blocks) * kRowBlock;
  constexpr size_t kPassFloats = size_t{kTilesPerPass} * kRowBlock * kKeyBlock;
  total = 0;
  const auto take = [this](size_t floats) {
    const size_t offset = total;
    total += RoundUpToLanes(floats);
    return offset;
  };
  query = take(pairs * qk_stride);
  output_gradient = take(pairs * v_stride);
  query_gradient = take(pairs * qk_stride);
  lse = take(pairs);
  delta = take(pairs);
  key = take(size_t{kKeyBlock} * qk_stride);
  key_transposed = take(size_t{kKeyBlock} * qk_width);
  value_transposed = take(size_t{kKeyBlock} * v_width);
  key_gradient = take(size_t{kKeyBlock} * qk_stride);
  value_gradient = take(size_t{kKeyBlock} * v_stride);
  probability = take(kPassFloats);
  score_gradient = take(kPassFloats);
  cap_slope = take(kKeyBlock);
  staging = take(4 * static_cast<size_t>(std::max(qk_stride, v_stride)));
}

size_t BackwardFloats(int64_t pairs, int qk_width, int v_width) {
  return BackwardLayout((pairs + kRowBlock - 1) / kRowBlock, qk_width, v_width).total;
}

Status RunBackward(const AttendBackwardArgs& args, const BackwardCode& code, std::string_view name) {
  const PieceSize size = SizeOfPieces(args, code.tile_rows);
  const std::vector<std::vector<Tile>> rounds = Rounds(args.tiles, args.bands, size.rows, size.keys);
  std::vector<std::vector<BackwardTask>> tasks(rounds.size());
  size_t most = 0;
  int64_t pairs = 0;
  for (size_t round = 0; round < rounds.size(); ++round) {
    for (int kv_head = 0; kv_head < args.key.heads; ++kv_head) {
      const HeadRange heads = QueryHeadsOf(args, kv_head);
      if (heads.empty()) continue;
      for (const Tile& piece : rounds[round]) {
        tasks[round].push_back({piece, heads, kv_head});
        pairs = std::max(pairs, piece.queries.count * heads.size());
      }
    }
    most = std::max(most, tasks[round].size());
  }
  const int threads = static_cast<int>(std::min<size_t>(args.threads, most));
  if (threads == 0) return absl::OkStatus();
  const size_t floats = code.arena_floats(pairs, args.query.width, args.value.width);
  std::atomic<bool> failed = false;
#pragma omp parallel num_threads(threads)
  {
    const auto arena = hwy::AllocateAligned<float>(floats);
    RowMask mask;
    if (arena == nullptr) failed = true;
#pragma omp barrier
    for (const std::vector<BackwardTask>& round : tasks) {
#pragma omp for schedule(dynamic)
      for (size_t i = 0; i < round.size(); ++i) {
        if (!failed && !IsSet(args.cancelled)) code.run(args, round[i], mask, arena.get());
      }
    }
  }
  if (failed) {
    return absl::ResourceExhaustedError(absl::StrCat(std::string(name), ": no memory for ", floats * 4, " bytes"));
  }
  if (IsSet(args.cancelled)) return absl::CancelledError(absl::StrCat(std::string(name), ": cancelled"));
  return absl::OkStatus();
}

}  // namespace tessera::cpu
