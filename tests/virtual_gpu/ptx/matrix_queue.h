#pragma once
namespace tessera::vgpu {
class MatrixQueue {};
}  // namespace tessera::vgpu
