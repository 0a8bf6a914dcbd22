// What the stand-ins for NCCL and cuBLAS need of the stand-in for cudart. Exported besides the CUDA runtime; built by
// the same compiler, so C++ types may pass.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <functional>
#include <string>

extern "C" {

// Runs `run` in stream order on the stream's thread, or adds it to the graph that the stream is captured into and says
// so in *captured.
cudaError_t vgpuSubmit(cudaStream_t stream, const std::string& what, const std::function<void()>& run, bool* captured);

// To be called in stream order. True when [address, address + bytes) is host memory or accessible device memory;
// otherwise the device is poisoned with an illegal access by `what`. Zero bytes are always accessible.
bool vgpuAccess(const void* address, size_t bytes, const char* what);

// Empty when it is memory of a GPU that is allocated; otherwise why not. For arguments, when they are given.
std::string vgpuWhyNoDeviceMemory(const void* address, size_t bytes);

}  // extern "C"
