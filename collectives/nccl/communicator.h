// The NCCL communicator: GPUs as ranks.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>

#include "collectives/communicator.h"
#include "collectives/stream_communicator.h"
#include "runtime/device/cuda/device.h"

namespace tessera {

struct NcclOptions {
  // The longest that Wait() and the library's own set-up may take; unset: the control communicator's deadline. Set-up
  // gets half of it, so that a rank that misses the others can still tell them.
  std::optional<std::chrono::milliseconds> deadline = std::nullopt;
  // Several ranks on one GPU, which NCCL allows from 2.30 on, with NCCL_MULTI_RANK_GPU_ENABLE=1 in its environment.
  bool may_share_gpu = false;
};

// Collective over `control`, whose ranks the new communicator has too; it must outlive the result, which asks it for
// Health(). All ranks succeed or all return the same error. FailedPrecondition when the NCCL at hand is too old or not
// the same everywhere, when compute capabilities differ (ranks would round differently), or when ranks share a GPU and
// may not.
StatusOr<std::unique_ptr<StreamCommunicator>> MakeNcclCommunicator(Communicator& control, const CudaDevice& device,
                                                                   const NcclOptions& options = {});

// "2.28.9", as the library that is loaded says it.
StatusOr<std::string> NcclVersion();

// Collective over `control`. Opens the GPU of this rank: the one at this rank's place among the ranks of its node. All
// ranks succeed or all return the error of the lowest that failed: no driver, fewer GPUs than ranks, no code for it.
StatusOr<CudaDevice> OpenDeviceOfRank(Communicator& control, bool may_share_gpu = false);

}  // namespace tessera
