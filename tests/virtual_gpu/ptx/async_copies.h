// cp.async in flight, per warp.
#pragma once

namespace tessera::vgpu {

class AsyncCopies {};

}  // namespace tessera::vgpu
