#include "runtime/latent/cuda/upload.h"

namespace tessera {

DeviceUploads::~DeviceUploads() {
  (void)Finish();
}

StatusOr<DeviceBuffer> DeviceUploads::Add(std::vector<std::byte> bytes, std::string_view what) {
  const auto size = static_cast<int64_t>(bytes.size());
  TESSERA_ASSIGN_OR_RETURN(DeviceBuffer buffer, DeviceBuffer::Allocate(device_, size, what, stream_));
  on_their_way_.push_back(std::move(bytes));
  TESSERA_RETURN_IF_ERROR(CopyAsync(buffer.data(), on_their_way_.back().data(), size, stream_));
  return buffer;
}

StatusOr<DeviceBuffer> DeviceUploads::Add(std::span<const float> values, std::string_view what) {
  const auto bytes = std::as_bytes(values);
  return Add(std::vector<std::byte>(bytes.begin(), bytes.end()), what);
}

Status DeviceUploads::Finish() {
  if (on_their_way_.empty()) return absl::OkStatus();
  TESSERA_RETURN_IF_ERROR(WaitForSubmitted(device_, stream_, "copying weights to the GPU"));
  on_their_way_.clear();
  return absl::OkStatus();
}

}  // namespace tessera
