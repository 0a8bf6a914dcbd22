// The header of a safetensors file: parsing with every check, and formatting. Internal to the reader and the writer.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/safetensors.h"

namespace tessera::internal {

// The tensors of `header`, ordered by offset; `data_bytes` is the size of the section they must fill exactly.
StatusOr<std::vector<SafetensorsTensor>> ParseSafetensorsHeader(const std::string& path, std::string_view header,
                                                                int64_t data_bytes);

// Lays the entries out one after another. InvalidArgument when a shape is negative or too large.
StatusOr<std::vector<SafetensorsTensor>> LayOutTensors(const std::string& path,
                                                       std::span<const SafetensorsEntry> entries);
// The length prefix and the JSON, padded with spaces so that the data begins at a multiple of 64 bytes.
std::string FormatSafetensorsHeader(std::span<const SafetensorsTensor> tensors);

// That `rows` is a dense view of as many rows as `segments` count, of the tensor's shape and type, and that every
// segment lies within the tensor.
Status CheckRows(const std::string& path, const SafetensorsTensor& tensor, std::span<const Segment> segments,
                 const ConstTensorView& rows);

}  // namespace tessera::internal
