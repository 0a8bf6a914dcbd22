#include <cuda_runtime_api.h>

#include "kernels/cuda/device/launch.h"

namespace tessera::cuda {

const char* ErrorText(int code) {
  return cudaGetErrorString(static_cast<cudaError_t>(code));
}

}  // namespace tessera::cuda
