#include "runtime/base/safetensors_header.h"

#include <algorithm>
#include <array>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

namespace tessera::internal {
namespace {

using Json = nlohmann::json;

constexpr std::string_view kMetadataName = "__metadata__";

struct ElementType {
  std::string_view name;
  int bytes;
  std::optional<DType> dtype;
};
constexpr std::array kElementTypes = {
    ElementType{"F32", 4, DType::kFloat32},  ElementType{"BF16", 2, DType::kBFloat16},
    ElementType{"F16", 2, DType::kFloat16},  ElementType{"F64", 8, DType::kFloat64},
    ElementType{"F8_E4M3", 1, std::nullopt}, ElementType{"F8_E5M2", 1, std::nullopt},
    ElementType{"I64", 8, std::nullopt},     ElementType{"I32", 4, std::nullopt},
    ElementType{"I16", 2, std::nullopt},     ElementType{"I8", 1, std::nullopt},
    ElementType{"U64", 8, std::nullopt},     ElementType{"U32", 4, std::nullopt},
    ElementType{"U16", 2, std::nullopt},     ElementType{"U8", 1, std::nullopt},
    ElementType{"BOOL", 1, std::nullopt},
};

const ElementType* FindType(std::string_view name) {
  const auto found = std::ranges::find(kElementTypes, name, &ElementType::name);
  return found == kElementTypes.end() ? nullptr : &*found;
}

std::string_view TypeName(DType dtype) {
  return std::ranges::find(kElementTypes, std::optional(dtype), &ElementType::dtype)->name;
}

// A short quotation of a JSON value for an error message; hostile headers may hold megabytes or invalid UTF-8.
std::string Quote(const Json& value) {
  constexpr size_t kShown = 60;
  std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
  if (text.size() > kShown) text = text.substr(0, kShown) + "...";
  return text;
}

// A JSON number that is a non-negative int64.
std::optional<int64_t> AsCount(const Json& value) {
  if (!value.is_number_unsigned()) return std::nullopt;
  const uint64_t count = value.get<uint64_t>();
  if (count > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return std::nullopt;
  return static_cast<int64_t>(count);
}

// Bytes of a tensor, or nullopt when they do not fit an int64.
std::optional<int64_t> TensorBytes(std::span<const int64_t> shape, int element_bytes) {
  int64_t bytes = element_bytes;
  for (int64_t extent : shape) {
    if (extent < 0 || __builtin_mul_overflow(bytes, extent, &bytes)) return std::nullopt;
  }
  return bytes;
}

StatusOr<SafetensorsTensor> ParseTensor(const std::string& path, const std::string& name, const Json& value,
                                        int64_t data_bytes) {
  const auto error = [&](std::string_view what) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": tensor ", Quote(name), ": ", std::string(what)));
  };
  if (!value.is_object()) return error(absl::StrCat("its entry is ", Quote(value), ", not an object"));
  const Json type = value.value("dtype", Json());
  const Json shape = value.value("shape", Json());
  const Json offsets = value.value("data_offsets", Json());

  SafetensorsTensor tensor;
  tensor.name = name;
  const ElementType* element = type.is_string() ? FindType(type.get_ref<const std::string&>()) : nullptr;
  if (element == nullptr) {
    return error(absl::StrCat("dtype ", Quote(type), " is not one of F64 F32 F16 BF16 F8_E4M3 F8_E5M2 I64 I32 I16 I8 ",
                              "U64 U32 U16 U8 BOOL"));
  }
  tensor.type = element->name;
  tensor.dtype = element->dtype;

  constexpr size_t kMaxAxes = 64;
  if (!shape.is_array() || shape.size() > kMaxAxes) {
    return error(absl::StrCat("shape ", Quote(shape), " is not an array of up to ", kMaxAxes, " extents"));
  }
  for (const Json& axis : shape) {
    const std::optional<int64_t> extent = AsCount(axis);
    if (!extent)
      return error(absl::StrCat("shape ", Quote(shape), " has extent ", Quote(axis), "; allowed: 0 to 2^63-1"));
    tensor.shape.push_back(*extent);
  }
  const std::optional<int64_t> bytes = TensorBytes(tensor.shape, element->bytes);
  if (!bytes) return error(absl::StrCat("shape ", Quote(shape), " is larger than 2^63 bytes"));

  if (!offsets.is_array() || offsets.size() != 2 || !AsCount(offsets[0]) || !AsCount(offsets[1])) {
    return error(absl::StrCat("data_offsets ", Quote(offsets), " are not two byte counts [begin, end]"));
  }
  tensor.begin_byte = *AsCount(offsets[0]);
  tensor.end_byte = *AsCount(offsets[1]);
  if (tensor.begin_byte > tensor.end_byte) return error(absl::StrCat("data_offsets ", Quote(offsets), " are reversed"));
  if (tensor.end_byte > data_bytes) {
    return error(absl::StrCat("data_offsets ", Quote(offsets), " leave the file's ", data_bytes, " bytes of data"));
  }
  if (tensor.end_byte - tensor.begin_byte != *bytes) {
    return error(absl::StrCat("data_offsets ", Quote(offsets), " span ", tensor.end_byte - tensor.begin_byte,
                              " bytes but ", Describe(tensor), " needs ", *bytes));
  }
  return tensor;
}

// Readers of the format take metadata for text to text; anything else is a file that was not meant for them.
StatusOr<SafetensorsMetadata> ParseMetadata(const std::string& path, const Json& value) {
  if (!value.is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": __metadata__ is ", Quote(value), "; allowed: an object of strings"));
  }
  SafetensorsMetadata metadata;
  for (const auto& [key, text] : value.items()) {
    if (!text.is_string()) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": __metadata__ entry ", Quote(key), " is ", Quote(text), "; allowed: a string"));
    }
    metadata.emplace(key, text.get<std::string>());
  }
  return metadata;
}

}  // namespace

// Tensors must tile the data section: an overlap lets one tensor alias another, a hole hides bytes from every reader.
Status CheckTiling(const std::string& path, std::span<const SafetensorsTensor> tensors, int64_t data_bytes) {
  int64_t end = 0;
  std::string previous = "the header";
  for (const SafetensorsTensor& tensor : tensors) {
    if (tensor.begin_byte != end) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": tensor ", Quote(tensor.name), " begins at data byte ", tensor.begin_byte, ", which ",
                       tensor.begin_byte < end ? "overlaps " : "leaves a hole after ", previous, ", ending at ", end));
    }
    end = tensor.end_byte;
    previous = Quote(tensor.name);
  }
  if (end == data_bytes) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(path, ": the data section has ", data_bytes, " bytes but the tensors end at ", end));
}

StatusOr<SafetensorsHeader> ParseSafetensorsHeader(const std::string& path, std::string_view header,
                                                   int64_t data_bytes) {
  // The parser keeps the last of two equal keys; which one a file means is a guess, so the names are watched here.
  std::set<std::string> names, keys;
  std::optional<std::string> duplicate, duplicate_key;
  std::string entry;
  const auto watch = [&](int depth, Json::parse_event_t event, Json& parsed) {
    if (event != Json::parse_event_t::key || depth > 2) return true;
    const auto& name = parsed.get_ref<const std::string&>();
    if (depth == 1) {
      entry = name;
      if (!names.insert(name).second) duplicate = name;
    } else if (entry == kMetadataName && !keys.insert(name).second) {
      duplicate_key = name;
    }
    return true;
  };
  const Json json = Json::parse(header, watch, /*allow_exceptions=*/false);
  if (json.is_discarded() || !json.is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": the header of ", header.size(), " bytes is not a JSON object"));
  }
  if (duplicate) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": tensor ", Quote(*duplicate), " is described twice"));
  }
  if (duplicate_key) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": __metadata__ entry ", Quote(*duplicate_key), " is given twice"));
  }
  SafetensorsHeader result;
  for (const auto& [name, value] : json.items()) {
    if (name == kMetadataName) {
      TESSERA_ASSIGN_OR_RETURN(result.metadata, ParseMetadata(path, value));
      continue;
    }
    TESSERA_ASSIGN_OR_RETURN(SafetensorsTensor tensor, ParseTensor(path, name, value, data_bytes));
    result.tensors.push_back(std::move(tensor));
  }
  std::ranges::sort(result.tensors, {}, [](const SafetensorsTensor& t) { return std::pair(t.begin_byte, t.end_byte); });
  TESSERA_RETURN_IF_ERROR(CheckTiling(path, result.tensors, data_bytes));
  return result;
}

StatusOr<std::vector<SafetensorsTensor>> LayOutTensors(const std::string& path,
                                                       std::span<const SafetensorsEntry> entries) {
  std::vector<SafetensorsTensor> tensors;
  int64_t begin = 0;
  for (const SafetensorsEntry& entry : entries) {
    SafetensorsTensor tensor{entry.name, std::string(TypeName(entry.dtype)), entry.dtype, entry.shape, begin, 0};
    const auto bytes = TensorBytes(entry.shape, static_cast<int>(SizeInBytes(entry.dtype)));
    if (!bytes || __builtin_add_overflow(begin, *bytes, &tensor.end_byte)) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": tensor ", Quote(entry.name), " of ", Describe(tensor), " is negative or too large"));
    }
    begin = tensor.end_byte;
    tensors.push_back(std::move(tensor));
  }
  return tensors;
}

StatusOr<std::string> FormatSafetensorsHeader(const std::string& path, std::span<const SafetensorsTensor> tensors,
                                              const SafetensorsMetadata& metadata) {
  nlohmann::ordered_json json = nlohmann::ordered_json::object();
  if (!metadata.empty()) json[std::string(kMetadataName)] = metadata;
  for (const SafetensorsTensor& tensor : tensors) {
    json[tensor.name] = {
        {"dtype", tensor.type}, {"shape", tensor.shape}, {"data_offsets", {tensor.begin_byte, tensor.end_byte}}};
  }
  constexpr size_t kAlignment = 64;  // a cache line, so that rows of the data can be viewed in place
  std::string text = json.dump(-1, ' ', false, Json::error_handler_t::replace);
  if (!metadata.empty() && Json::parse(text, nullptr, false)[std::string(kMetadataName)] != Json(metadata)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": metadata must be UTF-8"));
  }
  text.append((kAlignment - (8 + text.size()) % kAlignment) % kAlignment, ' ');
  if (static_cast<int64_t>(text.size()) > kMaxSafetensorsHeaderBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": a header of ", text.size(), " bytes; allowed: up to ", kMaxSafetensorsHeaderBytes));
  }
  std::string header(8, '\0');
  const uint64_t length = text.size();
  for (int byte = 0; byte < 8; ++byte) header[byte] = static_cast<char>(length >> (8 * byte));
  return header + text;
}

Status CheckRows(const std::string& path, const SafetensorsTensor& tensor, std::span<const Segment> segments,
                 const ConstTensorView& rows) {
  const int64_t tokens = tensor.shape.empty() ? 0 : tensor.shape[0];
  int64_t count = 0;
  for (const Segment& segment : segments) {
    if (segment.empty()) continue;
    if (segment.begin < 0 || segment.stride < 1 || segment.last() >= tokens) {
      return absl::OutOfRangeError(absl::StrCat(path, ": tokens ", segment.begin, " to ", segment.last(),
                                                " are not within the ", tokens, " of tensor ", Quote(tensor.name)));
    }
    count += segment.count;
  }
  const int64_t heads = tensor.shape.size() > 1 ? tensor.shape[1] : 1;
  const int64_t width = tensor.shape.size() > 2 ? tensor.shape[2] : 1;
  if (rows.rows != count || rows.heads != heads || rows.width != width || rows.dtype != tensor.dtype ||
      !rows.IsDense()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": tensor ", Quote(tensor.name), " is ", Describe(tensor),
                                                   "; ", count, " of its rows do not fit a buffer of ",
                                                   std::string(Name(rows.dtype)), " [", rows.rows, ", ", rows.heads,
                                                   ", ", rows.width, "]"));
  }
  return absl::OkStatus();
}

}  // namespace tessera::internal
