#include "tests/virtual_gpu/ptx/lanes.h"

namespace tessera::vgpu {

bool HasV3() {
#if defined(__x86_64__)
  static const bool has =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  return has;
#else
  return false;
#endif
}

}  // namespace tessera::vgpu
