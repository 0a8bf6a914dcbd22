// Which GPU each rank of a node takes.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "runtime/base/status.h"
#include "runtime/device/cuda/topology.h"

namespace tessera {

struct GpuSeen {
  std::array<uint8_t, 16> uuid{};
  CoreMask near;  // processors of its NUMA node
};

// A rank of the node: where it may run, and the GPUs that CUDA shows to it, by CUDA's numbers. Ranks may see different
// ones (Slurm's --gpus-per-task, CUDA_VISIBLE_DEVICES).
struct RankSeen {
  CoreMask processors;
  std::vector<GpuSeen> gpus;
};

// What this process sees. Opens no GPU.
StatusOr<RankSeen> SeenFromHere();

// Per rank, the number of its GPU among those that it sees. Every rank gets one of its own, such that the processors of
// all ranks are as near to their GPUs as can be; among equals, GPUs go to ranks in order. Pure, so that every rank of
// the node finds the same. FailedPrecondition when the node has fewer GPUs than ranks, unless `may_share`, which deals
// them out in turn, and when ranks cannot be told apart by what they see.
StatusOr<std::vector<int>> PlaceRanks(std::span<const RankSeen> ranks, bool may_share = false);

}  // namespace tessera
