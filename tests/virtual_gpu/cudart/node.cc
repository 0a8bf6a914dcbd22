#include "tests/virtual_gpu/cudart/node.h"

#include <cstdio>

#include "tests/virtual_gpu/cudart/order.h"

namespace tessera::vgpu {

Node& Node::Get() {
  static Node* const node = new Node;
  return *node;
}

Node::Node() {
  const Config& config = GetConfig();
  if (!config.error.empty()) {
    std::fprintf(stderr, "vgpu: %s\n", config.error.c_str());
    usable_ = cudaErrorInitializationError;
  } else if (!config.driver) {
    usable_ = cudaErrorInsufficientDriver;
  } else if (config.devices == 0) {
    usable_ = cudaErrorNoDevice;
  }
  if (usable_ != cudaSuccess) return;
  for (int i = 0; i < config.devices; ++i) devices_.push_back(std::make_unique<Device>(i, config));
}

int& Node::current_index() {
  thread_local int index = 0;
  return index;
}

Device* Node::OwnerOf(const void* address) {
  for (const auto& device : devices_) {
    if (device->Owns(address)) return device.get();
  }
  return nullptr;
}

std::shared_ptr<CUstream_st> Node::FindStream(cudaStream_t handle) {
  if (handle == nullptr || handle == cudaStreamLegacy) return current().FindStream(handle);
  for (const auto& device : devices_) {
    if (auto stream = device->FindStream(handle)) return stream;
  }
  return nullptr;
}

void Node::AddPinned(void* address, size_t bytes) {
  HiddenLock hidden(pinned_mutex_);
  const auto begin = reinterpret_cast<uint64_t>(address);
  pinned_[begin] = bytes;
  for (const auto& device : devices_) device->address_space().Add(begin, bytes);
}

bool Node::RemovePinned(void* address) {
  HiddenLock hidden(pinned_mutex_);
  const auto begin = reinterpret_cast<uint64_t>(address);
  if (pinned_.erase(begin) == 0) return false;
  for (const auto& device : devices_) device->address_space().Remove(begin);
  return true;
}

bool Node::IsPinned(const void* address) {
  HiddenLock hidden(pinned_mutex_);
  const auto value = reinterpret_cast<uint64_t>(address);
  const auto it = pinned_.upper_bound(value);
  return it != pinned_.begin() && value - std::prev(it)->first < std::prev(it)->second;
}

cudaError_t& LastError() {
  thread_local cudaError_t error = cudaSuccess;
  return error;
}

cudaError_t Submit(Node& node, cudaStream_t handle, std::string what, std::function<void(Device&)> run) {
  const std::shared_ptr<CUstream_st> stream = node.FindStream(handle);
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  Device& device = stream->device();
  auto bound = [&device, run = std::move(run)] { run(device); };
  if (stream->capture != nullptr) return AddToCapture(*stream, std::move(what), std::move(bound));
  device.Submit(*stream, {std::move(what), std::move(bound), {}});
  return cudaSuccess;
}

cudaError_t SubmitAndWait(Node& node, cudaStream_t handle, std::string what, std::function<void(Device&)> run) {
  const std::shared_ptr<CUstream_st> stream = node.FindStream(handle);
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  if (stream->capture != nullptr) return RefuseInCapture(*stream, what);
  Device& device = stream->device();
  device.Submit(*stream, {std::move(what), [&device, run = std::move(run)] { run(device); }, {}})->Wait();
  return device.fault_code();
}

}  // namespace tessera::vgpu
