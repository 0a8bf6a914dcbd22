#pragma once
namespace tessera::vgpu {
struct MbarrierTable {};
}  // namespace tessera::vgpu
