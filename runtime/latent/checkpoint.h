// A checkpoint directory: model.safetensors, or shards with model.safetensors.index.json. Files are mapped, not read.
#pragma once

#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/mla.h"
#include "runtime/base/safetensors.h"
#include "runtime/base/status.h"
#include "runtime/latent/config.h"

namespace tessera {

class Checkpoint {
 public:
  // NotFound when neither file exists; InvalidArgument when the index names a shard or tensor that is not there.
  static StatusOr<Checkpoint> Open(const std::string& directory);

  const std::string& directory() const { return directory_; }
  std::span<const SafetensorsFile> files() const { return files_; }
  // Key/value pairs of the files' __metadata__; later files win.
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  bool Has(std::string_view name) const;
  // A rank-2 tensor [rows, columns], or a vector as [rows, 1], data in the mapping. NotFound names the tensor and its
  // nearest relatives; InvalidArgument names the shape found and the one needed.
  StatusOr<MatrixView> Matrix(std::string_view name, int64_t rows, int64_t columns) const;

 private:
  Status Missing(std::string_view name) const;

  std::string directory_;
  std::vector<SafetensorsFile> files_;
  std::map<std::string, int, std::less<>> file_of_;  // tensor name to file
  std::map<std::string, std::string> metadata_;
};

// "model.layers.3.self_attn."
std::string AttentionPrefix(int layer);
// The attention weights of one layer; views into the mapping. Errors as Checkpoint::Matrix and CheckFinite.
StatusOr<MlaWeights> ReadMlaWeights(const Checkpoint& checkpoint, const MlaShape& shape, int layer);
// InvalidArgument naming tensor and index when a matrix holds a NaN or an infinity.
Status CheckFinite(const MatrixView& matrix, std::string_view name);

}  // namespace tessera
