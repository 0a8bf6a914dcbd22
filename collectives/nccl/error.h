// NCCL results as Status. Needs no <nccl.h>: a ncclResult_t is an int here.
#pragma once

#include <string_view>

#include "runtime/base/status.h"

struct ncclComm;

namespace tessera::internal {

// OK for ncclSuccess and ncclInProgress. `comm` may be null; it gives the text of its last error.
Status NcclStatus(int result, std::string_view call, ncclComm* comm = nullptr);

}  // namespace tessera::internal
