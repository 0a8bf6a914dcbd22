// The node: its GPUs, the calling thread's current one, pinned host memory, and what every entry point of the library
// begins and ends with.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/virtual_gpu/cudart/capture.h"
#include "tests/virtual_gpu/cudart/device.h"

namespace tessera::vgpu {

class Node {
 public:
  static Node& Get();  // never destroyed: stream threads outlive static destructors

  cudaError_t usable() const { return usable_; }  // cudaErrorInsufficientDriver, cudaErrorNoDevice or success
  int devices() const { return static_cast<int>(devices_.size()); }
  Device& device(int index) { return *devices_[index]; }
  Device& current() { return *devices_[current_index()]; }
  static int& current_index();  // of this thread

  // The device whose arena holds `address`, null for host memory.
  Device* OwnerOf(const void* address);
  // The stream of a handle on any device, null when there is none; null and cudaStreamLegacy mean the current device's.
  std::shared_ptr<CUstream_st> FindStream(cudaStream_t handle);

  void AddPinned(void* address, size_t bytes);
  bool RemovePinned(void* address);
  bool IsPinned(const void* address);

 private:
  Node();
  cudaError_t usable_ = cudaSuccess;
  std::vector<std::unique_ptr<Device>> devices_;
  std::mutex pinned_mutex_;
  std::map<uint64_t, size_t> pinned_;
};

// The error that cudaGetLastError returns.
cudaError_t& LastError();
inline cudaError_t Note(cudaError_t code) {
  if (code != cudaSuccess) LastError() = code;
  return code;
}

// The frame of an entry point: the node must be usable and the current device healthy.
template <typename Body>
cudaError_t Call(Body&& body) {
  Node& node = Node::Get();
  if (node.usable() != cudaSuccess) return Note(node.usable());
  if (node.current().poisoned()) return Note(node.current().fault_code());
  return Note(body(node));
}

// Submits work to a stream, or adds it to the graph that the stream is captured into.
cudaError_t Submit(Node& node, cudaStream_t handle, std::string what, std::function<void(Device&)> run);
// The same, and waits: for calls that are synchronous with the host.
cudaError_t SubmitAndWait(Node& node, cudaStream_t handle, std::string what, std::function<void(Device&)> run);

}  // namespace tessera::vgpu
