#include "runtime/latent/config.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

namespace tessera {
namespace {

using Json = nlohmann::json;

constexpr int64_t kMostExtent = 1 << 20;  // widths and head counts are int, and so must their product be
constexpr int64_t kMostLayers = 1 << 14;
constexpr int64_t kMostPositions = int64_t{1} << 40;
constexpr int64_t kMostConfigBytes = 1 << 24;

std::string Quote(const Json& value) {
  constexpr size_t kShown = 60;
  std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
  if (text.size() > kShown) text = text.substr(0, kShown) + "...";
  return text;
}

// Reads fields of one JSON object and keeps the first complaint, so that the caller can list fields without branching.
class Fields {
 public:
  Fields(const Json& json, std::string where) : json_(json), where_(std::move(where)) {}
  const Status& status() const { return status_; }

  // An absent or null field is `fallback`; without one it is an error.
  int64_t Integer(const char* name, int64_t least, int64_t most, std::optional<int64_t> fallback = {}) {
    const Json* value = Find(name, fallback.has_value());
    if (value == nullptr) return fallback.value_or(least);
    // 1e2 and 100.0 are numbers of layers to some writers, not to this reader.
    const bool fits = value->is_number_unsigned() && value->get<uint64_t>() <= static_cast<uint64_t>(most) &&
                      static_cast<int64_t>(value->get<uint64_t>()) >= least;
    if (fits) return static_cast<int64_t>(value->get<uint64_t>());
    Refuse(name, *value, absl::StrCat("integers from ", least, " to ", most));
    return least;
  }
  int Extent(const char* name, std::optional<int64_t> fallback = {}) {
    return static_cast<int>(Integer(name, 1, kMostExtent, fallback));
  }
  // Positive, or also zero where that means "off".
  double Number(const char* name, std::optional<double> fallback = {}, bool zero_allowed = false) {
    const Json* value = Find(name, fallback.has_value());
    if (value == nullptr) return fallback.value_or(1.0);
    const double number = value->is_number() ? value->get<double>() : -1.0;
    if (std::isfinite(number) && (number > 0 || (zero_allowed && number == 0))) return number;
    Refuse(name, *value, zero_allowed ? "finite numbers from 0" : "finite numbers above 0");
    return 1.0;
  }
  bool Flag(const char* name, bool fallback) {
    const Json* value = Find(name, true);
    if (value == nullptr) return fallback;
    if (!value->is_boolean()) Refuse(name, *value, "true, false");
    return value->is_boolean() && value->get<bool>();
  }
  std::string Text(const char* name, const std::string& fallback) {
    const Json* value = Find(name, true);
    if (value == nullptr) return fallback;
    if (!value->is_string()) Refuse(name, *value, "a string");
    return value->is_string() ? value->get<std::string>() : fallback;
  }
  void Refuse(const std::string& name, const Json& value, const std::string& allowed) {
    if (!status_.ok()) return;
    status_ =
        absl::InvalidArgumentError(absl::StrCat(where_, ": ", name, " is ", Quote(value), "; allowed: ", allowed));
  }
  // Null when absent or null.
  const Json* Find(const char* name, bool optional = true) {
    const auto it = json_.find(name);
    if (it != json_.end() && !it->is_null()) return &*it;
    if (!optional && status_.ok()) {
      const auto type = json_.find("model_type");
      status_ = absl::InvalidArgumentError(
          absl::StrCat(where_, ": ", name, " is missing; needed: the fields of a DeepSeek-V2 or V3 model",
                       type != json_.end() ? absl::StrCat(" (model_type is ", Quote(*type), ")") : ""));
    }
    return nullptr;
  }

 private:
  const Json& json_;
  std::string where_;
  Status status_;
};

StatusOr<std::optional<YarnScaling>> ReadScaling(const Json* json, const std::string& path) {
  if (json == nullptr) return std::optional<YarnScaling>();
  const std::string where = path + ": rope_scaling";
  if (!json->is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(where, " is ", Quote(*json), "; allowed: null or an object"));
  }
  Fields fields(*json, where);
  const std::string type = fields.Text("type", fields.Text("rope_type", ""));
  TESSERA_RETURN_IF_ERROR(fields.status());
  if (type == "default") return std::optional<YarnScaling>();
  if (type != "yarn") {
    return absl::InvalidArgumentError(absl::StrCat(where, ": type is \"", type, "\"; allowed: yarn, default, or null"));
  }
  YarnScaling yarn;
  yarn.factor = fields.Number("factor");
  yarn.original_positions =
      fields.Integer("original_max_position_embeddings", 1, kMostPositions, yarn.original_positions);
  yarn.beta_fast = fields.Number("beta_fast", yarn.beta_fast);
  yarn.beta_slow = fields.Number("beta_slow", yarn.beta_slow);
  yarn.mscale = fields.Number("mscale", yarn.mscale, /*zero_allowed=*/true);
  yarn.mscale_all_dim = fields.Number("mscale_all_dim", yarn.mscale_all_dim, /*zero_allowed=*/true);
  if (yarn.factor < 1.0) fields.Refuse("factor", yarn.factor, "1 or more");
  TESSERA_RETURN_IF_ERROR(fields.status());
  return std::optional(yarn);
}

StatusOr<std::string> ReadSmallFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file.is_open()) return absl::NotFoundError(absl::StrCat("cannot open ", path));
  std::string text(kMostConfigBytes + 1, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(file.gcount()));
  if (static_cast<int64_t>(text.size()) > kMostConfigBytes) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": longer than ", kMostConfigBytes, " bytes"));
  }
  return text;
}

}  // namespace

StatusOr<ModelConfig> ReadModelConfig(const std::string& directory) {
  const std::string path = directory + "/config.json";
  TESSERA_ASSIGN_OR_RETURN(const std::string text, ReadSmallFile(path));
  const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return absl::InvalidArgumentError(absl::StrCat(path, ": not a JSON object"));
  Fields fields(json, path);

  ModelConfig config;
  MlaShape& shape = config.attention;
  shape.hidden = fields.Extent("hidden_size");
  shape.heads = fields.Extent("num_attention_heads");
  shape.query_rank = static_cast<int>(fields.Integer("q_lora_rank", 1, kMostExtent, 0));
  shape.latent = fields.Extent("kv_lora_rank");
  shape.nope = fields.Extent("qk_nope_head_dim");
  shape.rope = fields.Extent("qk_rope_head_dim");
  shape.value = fields.Extent("v_head_dim");
  if (shape.rope % 2 != 0) fields.Refuse("qk_rope_head_dim", shape.rope, "even widths, because RoPE rotates pairs");
  const int64_t width = std::max(shape.qk_width(), shape.nope + shape.value);
  if (fields.status().ok() && shape.heads * width > std::numeric_limits<int>::max()) {
    fields.Refuse("num_attention_heads", shape.heads, absl::StrCat("heads of width ", width, " up to 2^31 in all"));
  }
  config.norm_epsilon = static_cast<float>(fields.Number("rms_norm_eps", 1e-6));
  shape.norm_epsilon = config.norm_epsilon;
  shape.rope_options.theta = fields.Number("rope_theta", 10000.0);
  const std::string layout = fields.Text("rope_layout", "interleaved");
  if (layout != "half_split" && layout != "interleaved") {
    fields.Refuse("rope_layout", layout, "interleaved (the default), half_split");
  }
  shape.rope_options.layout = layout == "half_split" ? RopeLayout::kHalfSplit : RopeLayout::kInterleaved;

  config.layers = static_cast<int>(fields.Integer("num_hidden_layers", 1, kMostLayers));
  config.vocabulary = static_cast<int>(fields.Integer("vocab_size", 1, 1 << 24));
  config.intermediate = fields.Extent("intermediate_size");
  config.routed_experts = static_cast<int>(fields.Integer("n_routed_experts", 0, kMostExtent, 0));
  config.first_dense_layers = static_cast<int>(fields.Integer("first_k_dense_replace", 0, kMostLayers, 0));
  config.max_positions = fields.Integer("max_position_embeddings", 1, kMostPositions);
  config.tied_embeddings = fields.Flag("tie_word_embeddings", false);
  config.activation = fields.Text("hidden_act", "silu");
  config.tokenizer = fields.Text("tokenizer", "");
  if (fields.Flag("attention_bias", false)) {
    fields.Refuse("attention_bias", true, "false, because projections here have no bias");
  }
  TESSERA_RETURN_IF_ERROR(fields.status());
  TESSERA_ASSIGN_OR_RETURN(shape.rope_options.yarn, ReadScaling(fields.Find("rope_scaling"), path));
  TESSERA_RETURN_IF_ERROR(Validate(shape));
  return config;
}

}  // namespace tessera
