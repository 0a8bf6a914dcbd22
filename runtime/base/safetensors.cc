#include "runtime/base/safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_join.h"
#include "runtime/base/safetensors_header.h"

namespace tessera {
namespace {

// Closes on scope exit; the mapping outlives it.
class FileDescriptor {
 public:
  explicit FileDescriptor(int descriptor) : descriptor_(descriptor) {}
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  ~FileDescriptor() {
    if (descriptor_ >= 0) close(descriptor_);
  }
  int get() const { return descriptor_; }

 private:
  int descriptor_;
};

}  // namespace

std::string Describe(const SafetensorsTensor& tensor) {
  return absl::StrCat(tensor.type, " [", absl::StrJoin(tensor.shape, ", "), "]");
}

StatusOr<SafetensorsFile> SafetensorsFile::Open(const std::string& path) {
  const FileDescriptor file(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (file.get() < 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot open ", path));
  struct stat info = {};
  if (fstat(file.get(), &info) != 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot inspect ", path));
  if (!S_ISREG(info.st_mode)) return absl::InvalidArgumentError(absl::StrCat(path, " is not a regular file"));
  const int64_t file_bytes = info.st_size;
  if (file_bytes < 8) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": ", file_bytes, " bytes; a safetensors file begins with an 8-byte header length"));
  }
  void* mapping = mmap(nullptr, file_bytes, PROT_READ, MAP_SHARED, file.get(), 0);
  if (mapping == MAP_FAILED) return absl::ErrnoToStatus(errno, absl::StrCat("cannot map ", path));

  SafetensorsFile result;
  result.path_ = path;
  result.mapping_ = static_cast<const std::byte*>(mapping);
  result.mapped_bytes_ = file_bytes;
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, mapping, sizeof header_bytes);
  const int64_t allowed = std::min(kMaxSafetensorsHeaderBytes, file_bytes - 8);
  if (header_bytes > static_cast<uint64_t>(allowed)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": header length ", header_bytes, " is not in [0, ", allowed,
                                                   "] (file of ", file_bytes, " bytes, headers up to ",
                                                   kMaxSafetensorsHeaderBytes, ")"));
  }
  result.data_offset_ = 8 + static_cast<int64_t>(header_bytes);
  const std::string_view header(static_cast<const char*>(mapping) + 8, header_bytes);
  TESSERA_ASSIGN_OR_RETURN(internal::SafetensorsHeader parsed,
                           internal::ParseSafetensorsHeader(path, header, file_bytes - result.data_offset_));
  result.tensors_ = std::move(parsed.tensors);
  result.metadata_ = std::move(parsed.metadata);
  return result;
}

SafetensorsFile::SafetensorsFile(SafetensorsFile&& other) noexcept
    : path_(std::move(other.path_)),
      tensors_(std::move(other.tensors_)),
      metadata_(std::move(other.metadata_)),
      mapping_(std::exchange(other.mapping_, nullptr)),
      mapped_bytes_(std::exchange(other.mapped_bytes_, 0)),
      data_offset_(other.data_offset_) {}

SafetensorsFile& SafetensorsFile::operator=(SafetensorsFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(tensors_, other.tensors_);
  std::swap(metadata_, other.metadata_);
  std::swap(mapping_, other.mapping_);
  std::swap(mapped_bytes_, other.mapped_bytes_);
  std::swap(data_offset_, other.data_offset_);
  return *this;
}

SafetensorsFile::~SafetensorsFile() {
  if (mapping_ != nullptr) munmap(const_cast<std::byte*>(mapping_), mapped_bytes_);
}

StatusOr<const SafetensorsTensor*> SafetensorsFile::Find(std::string_view name) const {
  std::vector<std::string> names;
  for (const SafetensorsTensor& tensor : tensors_) {
    if (tensor.name == name) return &tensor;
    names.push_back(tensor.name);
  }
  constexpr size_t kNamesShown = 20;
  const size_t hidden = names.size() > kNamesShown ? names.size() - kNamesShown : 0;
  names.resize(names.size() - hidden);
  return absl::NotFoundError(absl::StrCat(path_, ": no tensor \"", std::string(name), "\"; the file holds ",
                                          names.empty() ? "none" : absl::StrJoin(names, ", "),
                                          hidden > 0 ? absl::StrCat(" and ", hidden, " more") : ""));
}

StatusOr<ConstTensorView> SafetensorsFile::Shape(std::string_view name) const {
  TESSERA_ASSIGN_OR_RETURN(const SafetensorsTensor* tensor, Find(name));
  const auto refuse = [&](std::string_view allowed) {
    return absl::InvalidArgumentError(absl::StrCat(path_, ": tensor \"", tensor->name, "\" is ", Describe(*tensor),
                                                   "; allowed: ", std::string(allowed)));
  };
  if (!tensor->dtype.has_value()) return refuse("types F32, BF16 and F16");
  const size_t axes = tensor->shape.size();
  if (axes != 2 && axes != 3) return refuse("[tokens, heads, width] or [tokens, heads]");
  constexpr int64_t kMaxExtent = 1 << 20;  // heads and widths are int; their product must not overflow either
  const int64_t width = axes == 3 ? tensor->shape[2] : 1;
  if (tensor->shape[1] > kMaxExtent || width > kMaxExtent) {
    return refuse(absl::StrCat("up to ", kMaxExtent, " heads and width ", kMaxExtent));
  }
  return ConstTensorView::Dense(nullptr, *tensor->dtype, tensor->shape[0], static_cast<int>(tensor->shape[1]),
                                static_cast<int>(width));
}

StatusOr<ConstTensorView> SafetensorsFile::View(std::string_view name) const {
  TESSERA_ASSIGN_OR_RETURN(ConstTensorView view, Shape(name));
  TESSERA_ASSIGN_OR_RETURN(const SafetensorsTensor* tensor, Find(name));
  view.data = Data(*tensor);
  if (reinterpret_cast<uintptr_t>(view.data) % SizeInBytes(view.dtype) != 0) {
    return absl::InvalidArgumentError(absl::StrCat(path_, ": tensor \"", tensor->name, "\" starts at byte ",
                                                   data_offset_ + tensor->begin_byte, ", which is not a multiple of ",
                                                   SizeInBytes(view.dtype), "; read its rows instead of viewing them"));
  }
  return view;
}

Status SafetensorsFile::ReadRows(std::string_view name, std::span<const Segment> segments,
                                 const TensorView& rows) const {
  TESSERA_RETURN_IF_ERROR(Shape(name).status());
  TESSERA_ASSIGN_OR_RETURN(const SafetensorsTensor* tensor, Find(name));
  TESSERA_RETURN_IF_ERROR(internal::CheckRows(path_, *tensor, segments, rows));
  const int64_t row_bytes = tensor->row_bytes();
  auto* out = static_cast<std::byte*>(rows.data);
  for (const Segment& segment : segments) {
    if (segment.empty() || row_bytes == 0) continue;
    const int64_t run = segment.stride == 1 ? segment.count : 1;
    for (int64_t row = 0; row < segment.count; row += run) {
      std::memcpy(out, Data(*tensor) + segment.token(row) * row_bytes, run * row_bytes);
      out += run * row_bytes;
    }
  }
  return absl::OkStatus();
}

}  // namespace tessera
