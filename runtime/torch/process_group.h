// Ranks of a torch.distributed process group, by the C interface's table of callbacks.
#pragma once

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "communicator.h"

namespace tessera_torch {

// `group` must offer send and receive of host memory (gloo) and be used by nobody else.
std::shared_ptr<Communicator> MakeProcessGroup(c10::intrusive_ptr<c10d::ProcessGroup> group, int64_t deadline_ms);

}  // namespace tessera_torch
