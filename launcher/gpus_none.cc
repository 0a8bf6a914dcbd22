#include <cstdio>

#include "launcher/gpus.h"

namespace tessera::launcher {

int PrintGpus(int) {
  std::printf("\nGPUs\n  not used: this build computes on CPUs only; configure with -DTESSERA_CUDA=ON for GPUs\n");
  return 0;
}

}  // namespace tessera::launcher
