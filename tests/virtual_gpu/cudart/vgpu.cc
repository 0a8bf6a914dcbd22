#include "tests/virtual_gpu/cudart/vgpu.h"

#include "tests/virtual_gpu/cudart/node.h"

using namespace tessera::vgpu;

extern "C" {

cudaError_t vgpuSubmit(cudaStream_t stream, const std::string& what, const std::function<void()>& run, bool* captured) {
  return Call([&](Node& node) {
    const auto found = node.FindStream(stream);
    if (found == nullptr) return cudaErrorInvalidResourceHandle;
    *captured = found->capture != nullptr;
    return Submit(node, stream, what, [run](Device&) { run(); });
  });
}

bool vgpuAccess(const void* address, size_t bytes, const char* what) {
  Device* const owner = bytes == 0 ? nullptr : Node::Get().OwnerOf(address);
  if (owner == nullptr) return true;
  const std::string trouble = owner->WhyNotAccessible(address, bytes);
  if (!trouble.empty()) owner->Poison(cudaErrorIllegalAddress, std::string(what) + ": " + trouble);
  return trouble.empty();
}

std::string vgpuWhyNoDeviceMemory(const void* address, size_t bytes) {
  if (bytes == 0) return "";
  Device* const owner = Node::Get().OwnerOf(address);
  return owner == nullptr ? "it is not device memory" : owner->WhyNotAllocated(address, bytes);
}

}  // extern "C"
