// Allocation: device memory, the stream-ordered pool, pinned host memory.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "tests/virtual_gpu/cudart/node.h"
#include "tests/virtual_gpu/cudart/order.h"

using namespace tessera::vgpu;

namespace {

constexpr size_t kAlignment = 256;

cudaError_t RefuseWhileCapturing(Node& node, cudaStream_t handle, const char* what) {
  const auto stream = node.FindStream(handle);
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  return stream->capture == nullptr ? cudaSuccess : RefuseInCapture(*stream, what);
}

cudaError_t FreeNow(Node& node, void* address) {
  Device* const device = node.OwnerOf(address);
  if (device == nullptr) return cudaErrorInvalidValue;
  if (const cudaError_t error = device->BeginFree(address); error != cudaSuccess) return error;
  // cudaFree waits for the device.
  for (const Point& point : device->LastPoints()) {
    if (point != nullptr) point->Wait();
  }
  device->EndFree(address);
  return cudaSuccess;
}

// There is one pool per device, and its handle is the device.
cudaMemPool_t PoolOf(Device& device) {
  return reinterpret_cast<cudaMemPool_t>(&device);
}

}  // namespace

extern "C" {

cudaError_t cudaMalloc(void** address, size_t bytes) {
  return Call([&](Node& node) {
    *address = nullptr;
    if (bytes == 0) return cudaSuccess;
    Device& device = node.current();
    if (const cudaError_t error = device.Allocate(bytes, address); error != cudaSuccess) return error;
    device.Open(*address);
    return cudaSuccess;
  });
}

cudaError_t cudaFree(void* address) {
  return Call([&](Node& node) { return address == nullptr ? cudaSuccess : FreeNow(node, address); });
}

cudaError_t cudaMallocAsync(void** address, size_t bytes, cudaStream_t stream) {
  return Call([&](Node& node) {
    *address = nullptr;
    if (const cudaError_t error = RefuseWhileCapturing(node, stream, "cudaMallocAsync"); error != cudaSuccess) {
      return error;
    }
    if (bytes == 0) return cudaSuccess;
    Device& device = node.FindStream(stream)->device();
    if (const cudaError_t error = device.Allocate(bytes, address); error != cudaSuccess) return error;
    return Submit(node, stream, "cudaMallocAsync", [address = *address](Device& d) { d.Open(address); });
  });
}

cudaError_t cudaFreeAsync(void* address, cudaStream_t stream) {
  return Call([&](Node& node) {
    if (address == nullptr) return cudaSuccess;
    if (const cudaError_t error = RefuseWhileCapturing(node, stream, "cudaFreeAsync"); error != cudaSuccess) {
      return error;
    }
    Device* const device = node.OwnerOf(address);
    if (device == nullptr) return cudaErrorInvalidValue;
    if (const cudaError_t error = device->BeginFree(address); error != cudaSuccess) return error;
    return Submit(node, stream, "cudaFreeAsync", [address, device](Device&) { device->EndFree(address); });
  });
}

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  return Call([&](Node& node) {
    *free = static_cast<size_t>(node.current().free_bytes());
    *total = static_cast<size_t>(node.current().total_bytes());
    return cudaSuccess;
  });
}

cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* pool, int device) {
  return Call([&](Node& node) {
    if (device < 0 || device >= node.devices()) return cudaErrorInvalidDevice;
    *pool = PoolOf(node.device(device));
    return cudaSuccess;
  });
}

cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*) {
  return Call([](Node&) { return cudaSuccess; });
}

cudaError_t cudaMemPoolTrimTo(cudaMemPool_t, size_t) {
  return Call([](Node&) { return cudaSuccess; });
}

cudaError_t cudaHostAlloc(void** address, size_t bytes, unsigned) {
  return Call([&](Node& node) {
    *address = nullptr;
    if (bytes == 0) return cudaSuccess;
    *address = std::aligned_alloc(kAlignment, (bytes + kAlignment - 1) / kAlignment * kAlignment);
    if (*address == nullptr) return cudaErrorMemoryAllocation;
    std::memset(*address, 0xff, bytes);
    node.AddPinned(*address, bytes);
    return cudaSuccess;
  });
}

cudaError_t cudaMallocHost(void** address, size_t bytes) {
  return cudaHostAlloc(address, bytes, cudaHostAllocDefault);
}

cudaError_t cudaFreeHost(void* address) {
  return Call([&](Node& node) {
    if (address == nullptr) return cudaSuccess;
    if (!node.RemovePinned(address)) return cudaErrorInvalidValue;
    std::free(address);
    return cudaSuccess;
  });
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* address) {
  return Call([&](Node& node) {
    std::memset(attributes, 0, sizeof *attributes);
    attributes->device = cudaInvalidDeviceId;
    if (Device* const device = node.OwnerOf(address)) {
      if (device->AllocationOf(address).first == 0) return cudaSuccess;
      attributes->type = cudaMemoryTypeDevice;
      attributes->device = device->index();
      attributes->devicePointer = const_cast<void*>(address);
    } else if (node.IsPinned(address)) {
      attributes->type = cudaMemoryTypeHost;
      attributes->device = Node::current_index();
      attributes->devicePointer = attributes->hostPointer = const_cast<void*>(address);
    }
    return cudaSuccess;
  });
}

}  // extern "C"
