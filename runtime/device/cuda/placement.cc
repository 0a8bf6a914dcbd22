#include "runtime/device/cuda/placement.h"

#include <algorithm>
#include <limits>

#include "runtime/device/cuda/device.h"

namespace tessera {
namespace {

constexpr int64_t kUnseen = int64_t{1} << 40;
constexpr int64_t kFar = int64_t{1} << 20;  // more than all preferences of order together

// Parts per thousand of the rank's processors that are not near the GPU.
int64_t FarShare(const CoreMask& processors, const CoreMask& near) {
  const auto count = static_cast<int64_t>(processors.count());
  return count == 0 ? 0 : 1000 * static_cast<int64_t>((processors & ~near).count()) / count;
}

// A column for each row such that the sum of costs is least, by shortest augmenting paths with potentials (Jonker and
// Volgenant 1987). cost[row][column], no more rows than columns.
std::vector<int> LeastCost(const std::vector<std::vector<int64_t>>& cost) {
  constexpr int64_t kInfinite = std::numeric_limits<int64_t>::max() / 4;
  const size_t rows = cost.size(), columns = rows == 0 ? 0 : cost[0].size();
  std::vector<int64_t> row_price(rows + 1), column_price(columns + 1);
  std::vector<size_t> row_of(columns + 1, 0);  // rows and columns count from 1; 0 is none
  for (size_t row = 1; row <= rows; ++row) {
    std::vector<int64_t> distance(columns + 1, kInfinite);
    std::vector<size_t> before(columns + 1, 0);
    std::vector<bool> done(columns + 1, false);
    row_of[0] = row;
    size_t column = 0;
    while (row_of[column] != 0) {
      done[column] = true;
      const size_t from = row_of[column];
      int64_t step = kInfinite;
      size_t next = 0;
      for (size_t c = 1; c <= columns; ++c) {
        if (done[c]) continue;
        const int64_t reduced = cost[from - 1][c - 1] - row_price[from] - column_price[c];
        if (reduced < distance[c]) {
          distance[c] = reduced;
          before[c] = column;
        }
        if (distance[c] < step) {
          step = distance[c];
          next = c;
        }
      }
      for (size_t c = 0; c <= columns; ++c) {
        if (done[c]) {
          row_price[row_of[c]] += step;
          column_price[c] -= step;
        } else {
          distance[c] -= step;
        }
      }
      column = next;
    }
    for (; column != 0; column = before[column]) row_of[column] = row_of[before[column]];
  }
  std::vector<int> result(rows);
  for (size_t c = 1; c <= columns; ++c) {
    if (row_of[c] != 0) result[row_of[c] - 1] = static_cast<int>(c - 1);
  }
  return result;
}

}  // namespace

StatusOr<RankSeen> SeenFromHere() {
  TESSERA_ASSIGN_OR_RETURN(const int devices, CudaDevice::Count());
  RankSeen seen;
  seen.processors = CoresOfThisThread();
  const StatusOr<NodeTopology> topology = NodeTopology::OfThisNode();
  for (int i = 0; i < devices; ++i) {
    TESSERA_ASSIGN_OR_RETURN(const CudaDevice::Identity gpu, CudaDevice::Identify(i));
    // Without a topology every GPU is as near as any other.
    seen.gpus.push_back({gpu.uuid, topology.ok() ? topology->ProcessorsNear(gpu.pci_bus_id) : CoreMask().set()});
  }
  return seen;
}

StatusOr<std::vector<int>> PlaceRanks(std::span<const RankSeen> ranks, bool may_share) {
  std::vector<std::array<uint8_t, 16>> gpus;  // of the node, in the order in which ranks see them
  for (const RankSeen& rank : ranks) {
    for (const GpuSeen& gpu : rank.gpus) {
      if (std::find(gpus.begin(), gpus.end(), gpu.uuid) == gpus.end()) gpus.push_back(gpu.uuid);
    }
  }
  if (gpus.empty()) return absl::FailedPreconditionError("no rank of this node sees a GPU");
  if (ranks.size() > gpus.size() && !may_share) {
    return absl::FailedPreconditionError(
        absl::StrCat(ranks.size(), " ranks on this node, but ", gpus.size(), gpus.size() == 1 ? " GPU" : " GPUs",
                     ": start at most ", gpus.size(), " per node, or allow ranks to share a GPU (NCCL 2.30 or later)"));
  }
  // Shared GPUs are columns as often as they have ranks.
  const size_t turns = (ranks.size() + gpus.size() - 1) / gpus.size();
  std::vector<std::vector<int64_t>> cost(ranks.size(), std::vector<int64_t>(turns * gpus.size(), kUnseen));
  for (size_t r = 0; r < ranks.size(); ++r) {
    for (const GpuSeen& gpu : ranks[r].gpus) {
      const size_t place = std::find(gpus.begin(), gpus.end(), gpu.uuid) - gpus.begin();
      for (size_t column = place; column < cost[r].size(); column += gpus.size()) {
        // Squares, so that two ranks never gain by changing places.
        const auto apart = static_cast<int64_t>(r) - static_cast<int64_t>(column);
        cost[r][column] = FarShare(ranks[r].processors, gpu.near) * kFar + apart * apart;
      }
    }
  }
  const std::vector<int> columns = LeastCost(cost);
  std::vector<int> result;
  for (size_t r = 0; r < ranks.size(); ++r) {
    if (cost[r][columns[r]] >= kUnseen) {
      return absl::FailedPreconditionError(
          absl::StrCat("rank ", r, " of this node finds every GPU that it sees taken by another: the ranks see ",
                       gpus.size(), " GPUs together, but too few of them each"));
    }
    const auto& uuid = gpus[columns[r] % gpus.size()];
    const auto& seen = ranks[r].gpus;
    result.push_back(static_cast<int>(
        std::find_if(seen.begin(), seen.end(), [&](const GpuSeen& gpu) { return gpu.uuid == uuid; }) - seen.begin()));
  }
  return result;
}

}  // namespace tessera
