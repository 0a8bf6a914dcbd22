// Plans the work of one attention call for thread blocks: no two blocks own the same row, masked rows are never
// visited, and rows that all meet are told apart from those that need a mask. Integers only; no CUDA.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cuda/device/work_lists.h"
#include "runtime/base/geometry.h"
#include "runtime/base/status.h"

namespace tessera::cuda {

// Which rows of the tiles a thread block owns.
enum class Side : uint8_t { kQueries, kKeys };

struct WorkLists {
  std::vector<RowBlock> blocks;  // those with most rows to visit first
  std::vector<Run> runs;
  std::vector<int32_t> band_numbers;
  std::vector<DeviceBand> bands;
};

// Blocks have at most `block_rows` rows; a run that is not masked starts at a multiple of `run_rows` rows of its
// segment. Rows that several tiles own get one block with the runs of all of them, in the order of the tiles. Rows that
// meet nothing get no block. InvalidArgument when a token, row or stride is out of what 32 bits can hold.
StatusOr<WorkLists> PlanWork(std::span<const Tile> tiles, std::span<const Band> bands, Side side, int block_rows,
                             int run_rows);

// Past the last row that a tile has: a call's tensors have at least these.
struct TileRows {
  int64_t queries = 0;
  int64_t keys = 0;
};
TileRows RowsOf(std::span<const Tile> tiles);

// Where the lists lie in one buffer, in bytes.
struct WorkLayout {
  int64_t blocks = 0;
  int64_t runs = 0;
  int64_t band_numbers = 0;
  int64_t bands = 0;
  int32_t block_count = 0;
};

// Appends the lists to `bytes`, each at a multiple of 16.
WorkLayout AppendWork(const WorkLists& lists, std::vector<std::byte>* bytes);

}  // namespace tessera::cuda
