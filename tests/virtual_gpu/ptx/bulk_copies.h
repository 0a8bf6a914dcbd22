// cp.async.bulk in flight: copies by the asynchronous proxy, delivered when nobody can go on without them.
#pragma once

#include "tests/virtual_gpu/ptx/warp.h"

namespace tessera::vgpu {

struct BulkCopies {};

// Delivers the oldest copy in flight. False when there is none, or on a fault (run.fault).
bool DeliverBulkCopy(Execution& run, Cluster& cluster);

// The cluster has ended: nothing may be in flight any more. False on a fault.
bool EndOfBulkCopies(Execution& run, Cluster& cluster);

}  // namespace tessera::vgpu
