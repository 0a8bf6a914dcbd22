// Copies and fills. Every one, also between host and device, happens in stream order on the stream's own thread: a
// program that touches the host side too early meets old bytes here, where a real GPU might forgive it.
#include <cstdio>
#include <cstring>
#include <string>

#include "tests/virtual_gpu/cudart/node.h"

using namespace tessera::vgpu;

namespace {

// Rows of `width` bytes, `pitch` apart.
struct Rows {
  const void* address;
  size_t pitch;
  size_t width;
  size_t height;
  size_t span() const { return height == 0 || width == 0 ? 0 : (height - 1) * pitch + width; }
};

bool OnDevice(cudaMemcpyKind kind, bool destination) {
  return kind == cudaMemcpyDeviceToDevice || kind == (destination ? cudaMemcpyHostToDevice : cudaMemcpyDeviceToHost);
}

// One side of a copy: on the side of the bus that `kind` says, and inside one allocation.
cudaError_t CheckSide(Node& node, const Rows& rows, cudaMemcpyKind kind, bool destination, const char* what) {
  if (rows.span() == 0) return cudaSuccess;
  Device* const device = node.OwnerOf(rows.address);
  if (kind != cudaMemcpyDefault && OnDevice(kind, destination) != (device != nullptr)) {
    std::fprintf(stderr, "vgpu: %s: the %s %p is %s memory, but the kind says otherwise\n", what,
                 destination ? "destination" : "source", rows.address, device == nullptr ? "host" : "device");
    return cudaErrorInvalidValue;
  }
  if (device == nullptr) return cudaSuccess;
  const std::string trouble = device->WhyNotAllocated(rows.address, rows.span());
  if (trouble.empty()) return cudaSuccess;
  std::fprintf(stderr, "vgpu: %s: %s\n", what, trouble.c_str());
  return cudaErrorInvalidValue;
}

// In stream order the memory may not be there yet or not any more.
bool CheckNow(Device& device, const Rows& rows, const char* what) {
  Device* const owner = Node::Get().OwnerOf(rows.address);
  if (owner == nullptr || rows.span() == 0) return true;
  const std::string trouble = owner->WhyNotAccessible(rows.address, rows.span());
  if (!trouble.empty()) device.Poison(cudaErrorIllegalAddress, std::string(what) + ": " + trouble);
  return trouble.empty();
}

cudaError_t Copy(const Rows& to, const Rows& from, cudaMemcpyKind kind, cudaStream_t stream, bool wait,
                 const char* what) {
  return Call([&](Node& node) {
    if (kind < cudaMemcpyHostToHost || kind > cudaMemcpyDefault) return cudaErrorInvalidMemcpyDirection;
    if (to.width > to.pitch || from.width > from.pitch) return cudaErrorInvalidPitchValue;
    if (const cudaError_t error = CheckSide(node, to, kind, true, what); error != cudaSuccess) return error;
    if (const cudaError_t error = CheckSide(node, from, kind, false, what); error != cudaSuccess) return error;
    auto run = [to, from, what](Device& device) {
      if (!CheckNow(device, to, what) || !CheckNow(device, from, what)) return;
      if (to.span() == 0) return;
      auto* out = static_cast<char*>(const_cast<void*>(to.address));
      const auto* in = static_cast<const char*>(from.address);
      if (to.pitch == to.width && from.pitch == from.width) {
        std::memcpy(out, in, to.width * to.height);
        return;
      }
      for (size_t row = 0; row < to.height; ++row) std::memcpy(out + row * to.pitch, in + row * from.pitch, to.width);
    };
    return wait ? SubmitAndWait(node, stream, what, run) : Submit(node, stream, what, run);
  });
}

cudaError_t Fill(const Rows& to, int value, cudaStream_t stream, const char* what) {
  return Call([&](Node& node) {
    if (to.width > to.pitch) return cudaErrorInvalidPitchValue;
    if (to.span() > 0 && node.OwnerOf(to.address) == nullptr && !node.IsPinned(to.address)) {
      std::fprintf(stderr, "vgpu: %s: %p is no device memory\n", what, to.address);
      return cudaErrorInvalidValue;
    }
    if (const cudaError_t error = CheckSide(node, to, cudaMemcpyDefault, true, what); error != cudaSuccess) {
      return error;
    }
    return Submit(node, stream, what, [to, value, what](Device& device) {
      if (to.span() == 0 || !CheckNow(device, to, what)) return;
      auto* out = static_cast<char*>(const_cast<void*>(to.address));
      for (size_t row = 0; row < to.height; ++row) std::memset(out + row * to.pitch, value, to.width);
    });
  });
}

Rows Flat(const void* address, size_t bytes) {
  return {address, bytes, bytes, 1};
}

}  // namespace

extern "C" {

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  return Copy(Flat(to, bytes), Flat(from, bytes), kind, nullptr, true, "cudaMemcpy");
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  return Copy(Flat(to, bytes), Flat(from, bytes), kind, stream, false, "cudaMemcpyAsync");
}

cudaError_t cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t bytes, cudaStream_t stream) {
  return Copy(Flat(to, bytes), Flat(from, bytes), cudaMemcpyDeviceToDevice, stream, false, "cudaMemcpyPeerAsync");
}

cudaError_t cudaMemcpy2D(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width, size_t height,
                         cudaMemcpyKind kind) {
  return Copy({to, to_pitch, width, height}, {from, from_pitch, width, height}, kind, nullptr, true, "cudaMemcpy2D");
}

cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                              size_t height, cudaMemcpyKind kind, cudaStream_t stream) {
  return Copy({to, to_pitch, width, height}, {from, from_pitch, width, height}, kind, stream, false,
              "cudaMemcpy2DAsync");
}

cudaError_t cudaMemset(void* to, int value, size_t bytes) {
  return Fill(Flat(to, bytes), value, nullptr, "cudaMemset");
}

cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  return Fill(Flat(to, bytes), value, stream, "cudaMemsetAsync");
}

cudaError_t cudaMemset2D(void* to, size_t pitch, int value, size_t width, size_t height) {
  return Fill({to, pitch, width, height}, value, nullptr, "cudaMemset2D");
}

cudaError_t cudaMemset2DAsync(void* to, size_t pitch, int value, size_t width, size_t height, cudaStream_t stream) {
  return Fill({to, pitch, width, height}, value, stream, "cudaMemset2DAsync");
}

}  // extern "C"
