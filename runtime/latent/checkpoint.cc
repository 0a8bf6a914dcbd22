#include "runtime/latent/checkpoint.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_join.h"

namespace tessera {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr const char* kSingleFile = "model.safetensors";
constexpr const char* kIndexFile = "model.safetensors.index.json";

bool Exists(const std::string& path) {
  std::error_code ignored;
  return fs::exists(path, ignored);
}

// The index's weight_map: tensor name to the name of a file beside the index.
StatusOr<std::map<std::string, std::string>> ReadWeightMap(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file.is_open()) return absl::NotFoundError(absl::StrCat("cannot open ", path));
  const Json json = Json::parse(file, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object() || !json.contains("weight_map") || !json["weight_map"].is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": not a JSON object with a weight_map object"));
  }
  std::map<std::string, std::string> files;
  for (const auto& [tensor, shard] : json["weight_map"].items()) {
    const std::string name = shard.is_string() ? shard.get<std::string>() : "";
    // A path would let an index point at any file of the machine.
    if (name.empty() || name.find('/') != std::string::npos || name == "." || name == "..") {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": tensor \"", tensor, "\" is in file ",
                       shard.dump(-1, ' ', true, Json::error_handler_t::replace).substr(0, 60),
                       "; allowed: names of files in the same directory"));
    }
    files.emplace(tensor, name);
  }
  return files;
}

// Edits that turn one name into the other (Levenshtein); names here are short.
int EditDistance(std::string_view a, std::string_view b) {
  std::vector<int> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = static_cast<int>(j);
  for (size_t i = 1; i <= a.size(); ++i) {
    int diagonal = std::exchange(row[0], static_cast<int>(i));
    for (size_t j = 1; j <= b.size(); ++j) {
      const int replace = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = std::exchange(row[j], std::min({row[j] + 1, row[j - 1] + 1, replace}));
    }
  }
  return row[b.size()];
}

std::string Shape(int64_t rows, int64_t columns) {
  return columns == 1 ? absl::StrCat("[", rows, "]") : absl::StrCat("[", rows, ", ", columns, "]");
}

}  // namespace

StatusOr<Checkpoint> Checkpoint::Open(const std::string& directory) {
  Checkpoint result;
  result.directory_ = directory;
  const std::string single = directory + "/" + kSingleFile, index = directory + "/" + kIndexFile;
  if (Exists(single)) {
    TESSERA_ASSIGN_OR_RETURN(SafetensorsFile file, SafetensorsFile::Open(single));
    for (const SafetensorsTensor& tensor : file.tensors()) result.file_of_.emplace(tensor.name, 0);
    result.files_.push_back(std::move(file));
  } else if (Exists(index)) {
    TESSERA_ASSIGN_OR_RETURN(const auto weight_map, ReadWeightMap(index));
    std::map<std::string, int> opened;
    for (const auto& [tensor, shard] : weight_map) {
      const auto [it, first] = opened.emplace(shard, static_cast<int>(result.files_.size()));
      if (first) {
        StatusOr<SafetensorsFile> file = SafetensorsFile::Open(directory + "/" + shard);
        if (!file.ok() && file.status().code() == absl::StatusCode::kNotFound) {
          return absl::InvalidArgumentError(
              absl::StrCat(index, ": tensor \"", tensor, "\" is in \"", shard, "\", a file that does not exist"));
        }
        TESSERA_RETURN_IF_ERROR(file.status());
        result.files_.push_back(*std::move(file));
      }
      result.file_of_.emplace(tensor, it->second);
    }
    for (const auto& [tensor, file] : result.file_of_) {
      if (result.files_[file].Find(tensor).ok()) continue;
      return absl::InvalidArgumentError(absl::StrCat(index, ": tensor \"", tensor, "\" is not in ",
                                                     result.files_[file].path(), ", where the index has it"));
    }
  } else {
    return absl::NotFoundError(absl::StrCat(directory, " holds neither ", kSingleFile, " nor ", kIndexFile));
  }
  for (const SafetensorsFile& file : result.files_) {
    for (const auto& [key, text] : file.metadata()) result.metadata_[key] = text;
  }
  return result;
}

bool Checkpoint::Has(std::string_view name) const {
  return file_of_.contains(name);
}

Status Checkpoint::Missing(std::string_view name) const {
  std::vector<std::pair<int, std::string_view>> others;
  for (const auto& [other, file] : file_of_) others.emplace_back(EditDistance(name, other), other);
  constexpr std::ptrdiff_t kShown = 3;
  const auto shown = others.begin() + std::min<std::ptrdiff_t>(kShown, std::ssize(others));
  std::partial_sort(others.begin(), shown, others.end());
  const auto quote = [](std::string* out, const auto& other) {
    absl::StrAppend(out, "\"", std::string(other.second), "\"");
  };
  return absl::NotFoundError(absl::StrCat(
      directory_, ": no tensor \"", std::string(name), "\"; ",
      others.empty() ? "the checkpoint is empty"
                     : absl::StrCat("nearest names: ", absl::StrJoin(others.begin(), shown, ", ", quote))));
}

StatusOr<MatrixView> Checkpoint::Matrix(std::string_view name, int64_t rows, int64_t columns) const {
  const auto it = file_of_.find(name);
  if (it == file_of_.end()) return Missing(name);
  const SafetensorsFile& file = files_[it->second];
  TESSERA_ASSIGN_OR_RETURN(const SafetensorsTensor* tensor, file.Find(name));
  const auto refuse = [&](const std::string& needed) {
    return absl::InvalidArgumentError(
        absl::StrCat(file.path(), ": tensor \"", tensor->name, "\" is ", Describe(*tensor), "; needed: ", needed));
  };
  const std::vector<int64_t>& shape = tensor->shape;
  const bool fits = (shape.size() == 2 && shape[0] == rows && shape[1] == columns) ||
                    (shape.size() == 1 && shape[0] == rows && columns == 1);
  if (!fits) return refuse(Shape(rows, columns));
  if (!tensor->dtype) return refuse("types F32, BF16 or F16");
  const std::byte* data = file.Bytes(*tensor).data();
  if (reinterpret_cast<uintptr_t>(data) % SizeInBytes(*tensor->dtype) != 0) {
    return refuse(absl::StrCat("data at a multiple of ", SizeInBytes(*tensor->dtype), " bytes"));
  }
  return MatrixView{data, *tensor->dtype, rows, columns};
}

std::string AttentionPrefix(int layer) {
  return absl::StrCat("model.layers.", layer, ".self_attn.");
}

StatusOr<MlaWeights> ReadMlaWeights(const Checkpoint& checkpoint, const MlaShape& shape, int layer) {
  const std::string prefix = AttentionPrefix(layer);
  const auto read = [&](const char* name, int64_t rows, int64_t columns) -> StatusOr<MatrixView> {
    const std::string full = absl::StrCat(prefix, name, ".weight");
    TESSERA_ASSIGN_OR_RETURN(const MatrixView matrix, checkpoint.Matrix(full, rows, columns));
    TESSERA_RETURN_IF_ERROR(CheckFinite(matrix, full));
    return matrix;
  };
  MlaWeights weights;
  const int64_t heads = shape.heads;
  if (shape.query_rank > 0) {
    TESSERA_ASSIGN_OR_RETURN(weights.query_down, read("q_a_proj", shape.query_rank, shape.hidden));
    TESSERA_ASSIGN_OR_RETURN(weights.query_norm, read("q_a_layernorm", shape.query_rank, 1));
    TESSERA_ASSIGN_OR_RETURN(weights.query_up, read("q_b_proj", heads * shape.qk_width(), shape.query_rank));
  } else {
    TESSERA_ASSIGN_OR_RETURN(weights.query, read("q_proj", heads * shape.qk_width(), shape.hidden));
  }
  TESSERA_ASSIGN_OR_RETURN(weights.kv_down, read("kv_a_proj_with_mqa", shape.cache_width(), shape.hidden));
  TESSERA_ASSIGN_OR_RETURN(weights.kv_norm, read("kv_a_layernorm", shape.latent, 1));
  TESSERA_ASSIGN_OR_RETURN(weights.kv_up, read("kv_b_proj", heads * (shape.nope + shape.value), shape.latent));
  TESSERA_ASSIGN_OR_RETURN(weights.output, read("o_proj", shape.hidden, heads * shape.value));
  return weights;
}

Status CheckFinite(const MatrixView& matrix, std::string_view name) {
  for (int64_t row = 0; row < matrix.rows; ++row) {
    for (int64_t column = 0; column < matrix.columns; ++column) {
      const float value = matrix.At(row, column);
      if (std::isfinite(value)) continue;
      return absl::InvalidArgumentError(absl::StrCat("tensor \"", std::string(name), "\" holds ", value, " at [", row,
                                                     ", ", column, "]; allowed: finite weights"));
    }
  }
  return absl::OkStatus();
}

}  // namespace tessera
