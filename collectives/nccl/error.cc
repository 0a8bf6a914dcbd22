#include "collectives/nccl/error.h"

#include <nccl.h>

#include "runtime/device/cuda/check.h"

namespace tessera::internal {

Status NcclStatus(int value, std::string_view call, ncclComm* comm) {
  const auto result = static_cast<ncclResult_t>(value);
  if (result == ncclSuccess || result == ncclInProgress) return absl::OkStatus();
  // A lost context explains whatever NCCL says.
  TESSERA_RETURN_IF_ERROR(DeviceFault());
  std::string text = absl::StrCat(std::string(call), ": ", ncclGetErrorString(result));
  if (const char* const last = ncclGetLastError(comm); last != nullptr && *last != '\0') {
    absl::StrAppend(&text, ": ", last);
  }
  switch (result) {
    case ncclInvalidArgument:
    case ncclInvalidUsage:
      return absl::InvalidArgumentError(text);
    case ncclRemoteError:
      return absl::UnavailableError(text);
    default:
      return absl::InternalError(text);
  }
}

}  // namespace tessera::internal
