#pragma once

#include <string_view>

#include "kernels/cuda/device/launch.h"
#include "runtime/base/status.h"

namespace tessera::cuda {

// OK for cudaSuccess, otherwise Internal with the error's text. `what` names the launch.
inline Status CheckLaunch(int code, std::string_view what) {
  if (code == 0) return absl::OkStatus();
  return absl::InternalError(absl::StrCat(std::string(what), ": ", ErrorText(code), " (cudaError_t ", code, ")"));
}

}  // namespace tessera::cuda
