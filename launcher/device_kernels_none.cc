// Where CUDA is not built.
#include "launcher/device_kernels.h"

namespace tessera::launcher {

StatusOr<std::unique_ptr<DeviceKernels>> OpenDeviceKernels() {
  return absl::UnimplementedError("--device cuda: this build has no CUDA; configure with -DTESSERA_CUDA=ON");
}

}  // namespace tessera::launcher
