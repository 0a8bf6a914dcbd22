#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <utility>

#include "runtime/base/safetensors.h"
#include "runtime/base/safetensors_header.h"

namespace tessera {
namespace {

std::string DirectoryOf(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

Status WriteAt(int file, const std::string& path, const std::byte* data, int64_t bytes, int64_t offset) {
  constexpr int64_t kMaxWrite = int64_t{1} << 30;  // Linux transfers at most 2 GiB - 4 KiB per call
  while (bytes > 0) {
    const ssize_t written = pwrite(file, data, std::min(bytes, kMaxWrite), offset);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot write ", path));
    data += written;
    bytes -= written;
    offset += written;
  }
  return absl::OkStatus();
}

}  // namespace

Status SafetensorsWriter::CheckWritable(const std::string& target) {
  struct stat info = {};
  if (stat(target.c_str(), &info) == 0 && !S_ISREG(info.st_mode)) {
    return absl::PermissionDeniedError(absl::StrCat("cannot write ", target, ": it exists and is not a regular file"));
  }
  const std::string directory = DirectoryOf(target);
  if (access(directory.c_str(), W_OK | X_OK) != 0) {
    return absl::PermissionDeniedError(
        absl::StrCat("cannot write ", target, ": directory ", directory, " does not exist or is not writable"));
  }
  return absl::OkStatus();
}

Status SafetensorsWriter::Open(const std::string& target, std::vector<SafetensorsTensor> tensors, uint64_t token,
                               const SafetensorsMetadata& metadata, bool create) {
  TESSERA_RETURN_IF_ERROR(CheckWritable(target));
  target_ = target;
  temporary_ = absl::StrFormat("%s.tmp-%016x", target, token);
  tensors_ = std::move(tensors);
  TESSERA_ASSIGN_OR_RETURN(const std::string header, internal::FormatSafetensorsHeader(target, tensors_, metadata));
  data_offset_ = static_cast<int64_t>(header.size());

  file_ = open(temporary_.c_str(), O_WRONLY | O_CLOEXEC | (create ? O_CREAT | O_EXCL : 0), 0666);
  if (file_ < 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot open ", temporary_));
  owns_temporary_ = create;
  if (!create) return absl::OkStatus();
  // Reserving all blocks now reports a full disk before any rank has written.
  const int64_t bytes = data_offset_ + (tensors_.empty() ? 0 : tensors_.back().end_byte);
  const int error = posix_fallocate(file_, 0, bytes);
  if (error != 0) return absl::ErrnoToStatus(error, absl::StrCat("cannot reserve ", bytes, " bytes for ", temporary_));
  return WriteAt(file_, temporary_, reinterpret_cast<const std::byte*>(header.data()), data_offset_, 0);
}

StatusOr<SafetensorsWriter> SafetensorsWriter::Create(const std::string& target,
                                                      std::span<const SafetensorsEntry> entries, uint64_t token,
                                                      const SafetensorsMetadata& metadata) {
  SafetensorsWriter writer;
  TESSERA_ASSIGN_OR_RETURN(std::vector<SafetensorsTensor> tensors, internal::LayOutTensors(target, entries));
  TESSERA_RETURN_IF_ERROR(writer.Open(target, std::move(tensors), token, metadata, /*create=*/true));
  return writer;
}

StatusOr<SafetensorsWriter> SafetensorsWriter::Join(const std::string& target,
                                                    std::span<const SafetensorsEntry> entries, uint64_t token,
                                                    const SafetensorsMetadata& metadata) {
  SafetensorsWriter writer;
  TESSERA_ASSIGN_OR_RETURN(std::vector<SafetensorsTensor> tensors, internal::LayOutTensors(target, entries));
  TESSERA_RETURN_IF_ERROR(writer.Open(target, std::move(tensors), token, metadata, /*create=*/false));
  return writer;
}

StatusOr<SafetensorsWriter> SafetensorsWriter::CreateLike(const std::string& target,
                                                          std::span<const SafetensorsTensor> tensors, uint64_t token,
                                                          const SafetensorsMetadata& metadata) {
  SafetensorsWriter writer;
  TESSERA_RETURN_IF_ERROR(internal::CheckTiling(target, tensors, tensors.empty() ? 0 : tensors.back().end_byte));
  TESSERA_RETURN_IF_ERROR(writer.Open(target, {tensors.begin(), tensors.end()}, token, metadata, /*create=*/true));
  return writer;
}

SafetensorsWriter::SafetensorsWriter(SafetensorsWriter&& other) noexcept
    : target_(std::move(other.target_)),
      temporary_(std::move(other.temporary_)),
      tensors_(std::move(other.tensors_)),
      data_offset_(other.data_offset_),
      file_(std::exchange(other.file_, -1)),
      owns_temporary_(std::exchange(other.owns_temporary_, false)) {}

SafetensorsWriter::~SafetensorsWriter() {
  if (file_ >= 0) close(file_);
  if (owns_temporary_) unlink(temporary_.c_str());
}

StatusOr<const SafetensorsTensor*> SafetensorsWriter::Find(std::string_view name) const {
  const auto tensor = std::ranges::find(tensors_, name, &SafetensorsTensor::name);
  if (tensor != tensors_.end()) return &*tensor;
  return absl::NotFoundError(absl::StrCat(target_, ": no tensor \"", std::string(name), "\" was announced"));
}

Status SafetensorsWriter::WriteBytes(std::string_view name, std::span<const std::byte> bytes) const {
  TESSERA_ASSIGN_OR_RETURN(const SafetensorsTensor* tensor, Find(name));
  if (static_cast<int64_t>(bytes.size()) != tensor->end_byte - tensor->begin_byte) {
    return absl::InvalidArgumentError(absl::StrCat(target_, ": ", bytes.size(), " bytes for tensor \"", tensor->name,
                                                   "\", which is ", Describe(*tensor)));
  }
  return WriteAt(file_, temporary_, bytes.data(), static_cast<int64_t>(bytes.size()),
                 data_offset_ + tensor->begin_byte);
}

Status SafetensorsWriter::WriteRows(std::string_view name, std::span<const Segment> segments,
                                    const ConstTensorView& rows) const {
  TESSERA_ASSIGN_OR_RETURN(const SafetensorsTensor* tensor, Find(name));
  TESSERA_RETURN_IF_ERROR(internal::CheckRows(target_, *tensor, segments, rows));
  const int64_t row_bytes = tensor->row_bytes();
  const auto* data = static_cast<const std::byte*>(rows.data);
  for (const Segment& segment : segments) {
    if (segment.empty() || row_bytes == 0) continue;
    const int64_t run = segment.stride == 1 ? segment.count : 1;
    for (int64_t row = 0; row < segment.count; row += run) {
      const int64_t offset = data_offset_ + tensor->begin_byte + segment.token(row) * row_bytes;
      TESSERA_RETURN_IF_ERROR(WriteAt(file_, temporary_, data, run * row_bytes, offset));
      data += run * row_bytes;
    }
  }
  return absl::OkStatus();
}

Status SafetensorsWriter::Commit() {
  if (!owns_temporary_) return absl::FailedPreconditionError("only the rank that created a file commits it");
  if (fsync(file_) != 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot flush ", temporary_));
  if (rename(temporary_.c_str(), target_.c_str()) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot rename ", temporary_, " to ", target_));
  }
  owns_temporary_ = false;
  // The rename itself must survive a power cut; a file system that cannot flush a directory has nothing to flush.
  const int directory = open(DirectoryOf(target_).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (directory >= 0) {
    fsync(directory);
    close(directory);
  }
  return absl::OkStatus();
}

}  // namespace tessera
