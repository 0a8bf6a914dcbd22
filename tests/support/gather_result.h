// Whole results from ranks that are processes.
#pragma once

#include "collectives/communicator.h"
#include "partition/plan.h"
#include "tests/support/distributed.h"
#include "tests/support/gradients.h"

namespace tessera::testing {

// Collective. Every rank has set its own rows of `result`; afterwards all ranks have all of them. Not for fp64.
Status GatherResult(Communicator& comm, const PlanSpec& spec, Result& result);
// Likewise; the sinks' gradient is taken from rank 0.
Status GatherGradients(Communicator& comm, const PlanSpec& spec, Gradients& gradients);

}  // namespace tessera::testing
