// Runs warps until they block: paths within a warp, warps within a block, blocks within a cluster.
#pragma once

#include "tests/virtual_gpu/ptx/warp.h"

namespace tessera::vgpu {

enum class Turn {
  kNothing,  // no path could run
  kIdle,     // it only asked for something that is not there yet (test_wait)
  kWorked,
  kFault,
};

// Runs one warp until it blocks, yields or ends.
Turn RunWarp(Warp& warp);

// Runs all warps of a cluster to their end. False: run.fault says why not.
bool RunCluster(Execution& run, Cluster& cluster);

// barrier.cc: a warp has ended; barriers that wait for everybody alive may complete.
void WarpEnded(Block& block);

// "warp 3 lanes 0xffffffff at line 12 `bar.sync 0`" for every path that waits.
std::string WhereEverybodyWaits(const Execution& run, const Cluster& cluster);

}  // namespace tessera::vgpu
