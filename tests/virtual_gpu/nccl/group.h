// ncclGroupStart and ncclGroupEnd: what was called between them is carried out together.
#pragma once

#include "tests/virtual_gpu/nccl/communicator.h"

namespace tessera::vgpu {

void BeginGroup();
ncclResult_t EndGroup();
// Adds to the calling thread's group, or submits at once outside of one.
ncclResult_t Enqueue(const std::shared_ptr<ncclComm>& comm, cudaStream_t stream, Operation operation);
// An argument was refused: EndGroup returns this and submits nothing.
ncclResult_t FailGroup(ncclResult_t error);

}  // namespace tessera::vgpu
