// Reading and writing safetensors files: an 8-byte little-endian header length, a JSON header, then the raw tensor
// data.
//
// Headers are treated as hostile: nothing in a file is believed before it was checked against the file's real size.
// Every error names the file, the tensor, the value found and what is allowed.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/dtype.h"
#include "runtime/base/geometry.h"
#include "runtime/base/status.h"
#include "runtime/base/tensor.h"

namespace tessera {

// A header longer than this is refused, as other readers of the format do.
inline constexpr int64_t kMaxSafetensorsHeaderBytes = 100'000'000;

// One tensor as its header describes it; offsets are relative to the data section.
struct SafetensorsTensor {
  std::string name;
  std::string type;            // as the file spells it: "BF16", "F32", "I64", ...
  std::optional<DType> dtype;  // nullopt when Tessera does not compute on this type
  std::vector<int64_t> shape;
  int64_t begin_byte = 0;
  int64_t end_byte = 0;

  // Bytes of one index of the first axis.
  int64_t row_bytes() const { return shape.empty() || shape[0] == 0 ? 0 : (end_byte - begin_byte) / shape[0]; }
};

// The header's "__metadata__": free text that comes with the tensors.
using SafetensorsMetadata = std::map<std::string, std::string>;

// "F32 [16384, 4, 64]"
std::string Describe(const SafetensorsTensor& tensor);

// A read-only mapping of a file. Pages are loaded when touched, so a rank that reads its own rows loads only those.
class SafetensorsFile {
 public:
  // NotFound or PermissionDenied when the file cannot be opened, InvalidArgument when it is not well formed.
  static StatusOr<SafetensorsFile> Open(const std::string& path);
  SafetensorsFile(SafetensorsFile&& other) noexcept;
  SafetensorsFile& operator=(SafetensorsFile&& other) noexcept;
  ~SafetensorsFile();

  const std::string& path() const { return path_; }
  std::span<const SafetensorsTensor> tensors() const { return tensors_; }
  const SafetensorsMetadata& metadata() const { return metadata_; }
  // NotFound lists the names that exist.
  StatusOr<const SafetensorsTensor*> Find(std::string_view name) const;

  // The bytes of one of this file's tensors() as they lie in the mapping: any type and rank, not necessarily aligned.
  std::span<const std::byte> Bytes(const SafetensorsTensor& tensor) const {
    return {Data(tensor), static_cast<size_t>(tensor.end_byte - tensor.begin_byte)};
  }

  // The tensor's bytes as [rows, heads, width] (rank 3) or [rows, heads, 1] (rank 2), data pointing into the mapping.
  // InvalidArgument when rank or type cannot be served, or the data is not aligned for its type.
  StatusOr<ConstTensorView> View(std::string_view name) const;
  // The same shape with data = nullptr; does not require alignment.
  StatusOr<ConstTensorView> Shape(std::string_view name) const;

  // Copies the rows of `segments` (global token = row of the file), in order, to the dense `rows`, whose shape and type
  // must be those of the tensor. OutOfRange when a segment leaves the tensor.
  Status ReadRows(std::string_view name, std::span<const Segment> segments, const TensorView& rows) const;

 private:
  SafetensorsFile() = default;
  const std::byte* Data(const SafetensorsTensor& tensor) const { return mapping_ + data_offset_ + tensor.begin_byte; }

  std::string path_;
  std::vector<SafetensorsTensor> tensors_;
  SafetensorsMetadata metadata_;
  const std::byte* mapping_ = nullptr;
  int64_t mapped_bytes_ = 0;
  int64_t data_offset_ = 0;
};

// A tensor to be written.
struct SafetensorsEntry {
  std::string name;
  DType dtype = DType::kFloat32;
  std::vector<int64_t> shape;  // first axis = global tokens
};

// Writes one file from many ranks: they write their rows to a temporary file beside the target, which is renamed over
// the target when all are done. A failed run removes the temporary and leaves an existing target as it was.
class SafetensorsWriter {
 public:
  // Whether `target` could be created or replaced, tried before hours of computing are spent on it.
  static Status CheckWritable(const std::string& target);
  // One rank creates the temporary at full size; `token` makes its name unique.
  static StatusOr<SafetensorsWriter> Create(const std::string& target, std::span<const SafetensorsEntry> entries,
                                            uint64_t token, const SafetensorsMetadata& metadata = {});
  // The others open it, with the same arguments, after it was created.
  static StatusOr<SafetensorsWriter> Join(const std::string& target, std::span<const SafetensorsEntry> entries,
                                          uint64_t token, const SafetensorsMetadata& metadata = {});
  // A file whose data section is laid out as that of another, of which `tensors` are the tensors(); any types.
  static StatusOr<SafetensorsWriter> CreateLike(const std::string& target, std::span<const SafetensorsTensor> tensors,
                                                uint64_t token, const SafetensorsMetadata& metadata = {});
  SafetensorsWriter(SafetensorsWriter&& other) noexcept;
  SafetensorsWriter& operator=(SafetensorsWriter&&) = delete;
  ~SafetensorsWriter();  // the creator removes the temporary unless it was committed

  // Writes the dense `rows` (first axis) to the global tokens of `segments`, in order.
  Status WriteRows(std::string_view name, std::span<const Segment> segments, const ConstTensorView& rows) const;
  // Writes a whole tensor. InvalidArgument when `bytes` are not as many as it has.
  Status WriteBytes(std::string_view name, std::span<const std::byte> bytes) const;
  // Creator only, after every rank has written: flushes to disk and renames.
  Status Commit();

 private:
  SafetensorsWriter() = default;
  Status Open(const std::string& target, std::vector<SafetensorsTensor> tensors, uint64_t token,
              const SafetensorsMetadata& metadata, bool create);
  StatusOr<const SafetensorsTensor*> Find(std::string_view name) const;

  std::string target_;
  std::string temporary_;
  std::vector<SafetensorsTensor> tensors_;
  int64_t data_offset_ = 0;
  int file_ = -1;
  bool owns_temporary_ = false;
};

}  // namespace tessera
