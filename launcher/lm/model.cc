#include "launcher/lm/model.h"

#include <cmath>

namespace tessera::launcher {
namespace {

StatusOr<std::vector<float>> ReadFloats(const Checkpoint& checkpoint, const std::string& name, int64_t rows,
                                        int64_t columns) {
  TESSERA_ASSIGN_OR_RETURN(const MatrixView view, checkpoint.Matrix(name, rows, columns));
  TESSERA_RETURN_IF_ERROR(CheckFinite(view, name));
  std::vector<float> values(rows * columns);
  for (size_t i = 0; i < values.size(); ++i) values[i] = LoadAsFloat(view.data, view.dtype, i);
  return values;
}

StatusOr<Linear> ReadLinear(const Checkpoint& checkpoint, const std::string& name, int64_t out, int64_t in,
                            DType compute) {
  TESSERA_ASSIGN_OR_RETURN(const MatrixView view, checkpoint.Matrix(name, out, in));
  TESSERA_RETURN_IF_ERROR(CheckFinite(view, name));
  return Linear::Create({view}, compute);
}

Status CheckSupported(const ModelConfig& config) {
  if (config.routed_experts > 0 && config.first_dense_layers < config.layers) {
    return absl::UnimplementedError(
        absl::StrFormat("n_routed_experts %d with first_k_dense_replace %d of %d layers: only models whose layers are "
                        "all dense can be run",
                        config.routed_experts, config.first_dense_layers, config.layers));
  }
  if (config.activation != "silu") {
    return absl::UnimplementedError("hidden_act \"" + config.activation + "\": only \"silu\" is supported");
  }
  return absl::OkStatus();
}

}  // namespace

StatusOr<LanguageModel> LanguageModel::Load(const Checkpoint& checkpoint, const ModelConfig& config, DType compute,
                                            int threads) {
  TESSERA_RETURN_IF_ERROR(CheckSupported(config));
  const int hidden = config.attention.hidden;
  const std::string head = config.tied_embeddings ? "model.embed_tokens.weight" : "lm_head.weight";
  TESSERA_ASSIGN_OR_RETURN(Linear last, ReadLinear(checkpoint, head, config.vocabulary, hidden, compute));
  LanguageModel model(config, threads, std::move(last));
  TESSERA_ASSIGN_OR_RETURN(model.embedding_,
                           ReadFloats(checkpoint, "model.embed_tokens.weight", config.vocabulary, hidden));
  TESSERA_ASSIGN_OR_RETURN(model.final_norm_, ReadFloats(checkpoint, "model.norm.weight", hidden, 1));
  for (int i = 0; i < config.layers; ++i) {
    const std::string prefix = absl::StrCat("model.layers.", i, ".");
    TESSERA_ASSIGN_OR_RETURN(auto attention_norm, ReadFloats(checkpoint, prefix + "input_layernorm.weight", hidden, 1));
    TESSERA_ASSIGN_OR_RETURN(auto mlp_norm,
                             ReadFloats(checkpoint, prefix + "post_attention_layernorm.weight", hidden, 1));
    const auto linear = [&](const char* name, int64_t out, int64_t in) {
      return ReadLinear(checkpoint, prefix + "mlp." + name + ".weight", out, in, compute);
    };
    TESSERA_ASSIGN_OR_RETURN(Linear gate, linear("gate_proj", config.intermediate, hidden));
    TESSERA_ASSIGN_OR_RETURN(Linear up, linear("up_proj", config.intermediate, hidden));
    TESSERA_ASSIGN_OR_RETURN(Linear down, linear("down_proj", hidden, config.intermediate));
    model.layers_.push_back(
        {std::move(attention_norm), std::move(mlp_norm), std::move(gate), std::move(up), std::move(down)});
  }
  return model;
}

void LanguageModel::Norm(std::span<const float> hidden, std::span<const float> gamma,
                         std::vector<float>& normed) const {
  normed.assign(hidden.begin(), hidden.end());
  for (size_t first = 0; first < normed.size(); first += gamma.size()) {
    RmsNormRow({normed.data() + first, gamma.size()}, gamma, config_.norm_epsilon);
  }
}

StatusOr<std::vector<float>> LanguageModel::Run(std::span<const int> tokens, const AttendLayer& attend) const {
  const auto rows = static_cast<int64_t>(tokens.size());
  const int64_t width = config_.attention.hidden;
  std::vector<float> hidden(rows * width), normed, change(rows * width);
  for (int64_t r = 0; r < rows; ++r) {
    if (tokens[r] < 0 || tokens[r] >= config_.vocabulary) {
      return absl::InvalidArgumentError(
          absl::StrFormat("token %d: the vocabulary is 0 to %d", tokens[r], config_.vocabulary - 1));
    }
    std::copy_n(embedding_.data() + tokens[r] * width, width, hidden.data() + r * width);
  }
  const auto add_change = [&] {
    for (size_t i = 0; i < hidden.size(); ++i) hidden[i] += change[i];
  };
  std::vector<float> gate(rows * config_.intermediate), up(gate.size());
  for (int i = 0; i < config_.layers; ++i) {
    const Layer& layer = layers_[i];
    Norm(hidden, layer.attention_norm, normed);
    TESSERA_RETURN_IF_ERROR(attend(i, normed.data(), change.data()));
    add_change();
    Norm(hidden, layer.mlp_norm, normed);
    TESSERA_RETURN_IF_ERROR(layer.gate.Apply(normed.data(), rows, gate.data(), threads_));
    TESSERA_RETURN_IF_ERROR(layer.up.Apply(normed.data(), rows, up.data(), threads_));
    for (size_t j = 0; j < gate.size(); ++j) gate[j] = gate[j] / (1.0f + std::exp(-gate[j])) * up[j];
    TESSERA_RETURN_IF_ERROR(layer.down.Apply(gate.data(), rows, change.data(), threads_));
    add_change();
  }
  return hidden;
}

StatusOr<std::vector<float>> LanguageModel::Logits(std::span<const float> hidden) const {
  std::vector<float> normed;
  Norm(hidden, final_norm_, normed);
  const auto rows = static_cast<int64_t>(hidden.size()) / config_.attention.hidden;
  std::vector<float> logits(rows * config_.vocabulary);
  TESSERA_RETURN_IF_ERROR(head_.Apply(normed.data(), rows, logits.data(), threads_));
  return logits;
}

}  // namespace tessera::launcher
