// The header of a safetensors file: parsing with every check, and formatting. Internal to the reader and the writer.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/safetensors.h"

namespace tessera::internal {

struct SafetensorsHeader {
  std::vector<SafetensorsTensor> tensors;  // ordered by offset
  SafetensorsMetadata metadata;
};
// `data_bytes` is the size of the section that the tensors must fill exactly.
StatusOr<SafetensorsHeader> ParseSafetensorsHeader(const std::string& path, std::string_view header,
                                                   int64_t data_bytes);

// That tensors in order of offset fill [0, data_bytes) without overlap or hole.
Status CheckTiling(const std::string& path, std::span<const SafetensorsTensor> tensors, int64_t data_bytes);

// Lays the entries out one after another. InvalidArgument when a shape is negative or too large.
StatusOr<std::vector<SafetensorsTensor>> LayOutTensors(const std::string& path,
                                                       std::span<const SafetensorsEntry> entries);
// The length prefix and the JSON, padded with spaces so that the data begins at a multiple of 64 bytes.
// InvalidArgument when a text is not UTF-8 or the header is longer than readers accept.
StatusOr<std::string> FormatSafetensorsHeader(const std::string& path, std::span<const SafetensorsTensor> tensors,
                                              const SafetensorsMetadata& metadata);

// That `rows` is a dense view of as many rows as `segments` count, of the tensor's shape and type, and that every
// segment lies within the tensor.
Status CheckRows(const std::string& path, const SafetensorsTensor& tensor, std::span<const Segment> segments,
                 const ConstTensorView& rows);

}  // namespace tessera::internal
