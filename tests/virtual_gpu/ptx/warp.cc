#include "tests/virtual_gpu/ptx/warp.h"

namespace tessera::vgpu {

Signal Warp::Fail(const Instruction& instruction, FaultKind kind, int lane, const std::string& what) {
  const Launch& launch = *block->run->launch;
  const auto dim = [](uint64_t x, uint64_t y, uint64_t z) {
    return "(" + std::to_string(x) + ", " + std::to_string(y) + ", " + std::to_string(z) + ")";
  };
  std::string message =
      launch.kernel->info.name + ", block " + dim(block->index.x, block->index.y, block->index.z) + ", ";
  if (lane >= 0) {
    const uint64_t thread = index * kLanes + lane;
    message += "thread " +
               dim(thread % launch.block.x, thread / launch.block.x % launch.block.y,
                   thread / launch.block.x / launch.block.y) +
               " (warp " + std::to_string(index) + " lane " + std::to_string(lane) + ")";
  } else {
    message += "warp " + std::to_string(index);
  }
  message += ", line " + std::to_string(instruction.source->line) + " `" + instruction.source->text + "`: " + what;
  if (!block->run->fault) block->run->fault = Fault{kind, std::move(message)};
  return Signal::kFault;
}

}  // namespace tessera::vgpu
