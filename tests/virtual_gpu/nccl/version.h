// The version that the stand-in claims: the header's, or VGPU_NCCL_VERSION (22809 for 2.28.9).
#pragma once

namespace tessera::vgpu {

int Version();

}  // namespace tessera::vgpu
