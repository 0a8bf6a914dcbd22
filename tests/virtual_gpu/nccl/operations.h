// The collectives of NCCL as messages between all pairs of ranks.
#pragma once

#include "tests/virtual_gpu/nccl/communicator.h"

namespace tessera::vgpu {

struct Reduction {
  ncclDataType_t type;
  ncclRedOp_t op;
};

Operation AllGather(ncclComm& comm, const void* send, void* receive, size_t bytes);
Operation Broadcast(ncclComm& comm, const void* send, void* receive, size_t bytes, int root);
// Of `count` elements; root -1 leaves the result on every rank.
Operation Reduce(ncclComm& comm, const void* send, void* receive, size_t count, Reduction reduction, int root);
Operation ReduceScatter(ncclComm& comm, const void* send, void* receive, size_t count, Reduction reduction);
Operation Message(const void* send, void* receive, size_t bytes, int peer);

}  // namespace tessera::vgpu
