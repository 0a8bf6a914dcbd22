#include "launcher/lm/dense_model.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>

#include "kernels/attention.h"
#include "kernels/linear.h"

namespace tessera::launcher {
namespace {

// Calibration needs typical latents, not the longest context that a model can serve.
constexpr int64_t kMostWindow = 4096;

struct Layer {
  std::vector<float> input_norm, query_norm, kv_norm, mlp_norm;
  std::vector<Linear> query;  // one matrix, or down and up
  Linear kv_down, kv_up, output, gate, up, down;
};

std::vector<float> Values(const MatrixView& view) {
  std::vector<float> values(view.rows * view.columns);
  for (int64_t row = 0; row < view.rows; ++row) {
    for (int64_t column = 0; column < view.columns; ++column)
      values[row * view.columns + column] = view.At(row, column);
  }
  return values;
}

StatusOr<Linear> Pack(const MatrixView& weights) {
  return Linear::Create({weights}, DType::kFloat32);
}

// y <- rows of x normalised; x and y are [rows, width] and may be the same.
void NormRows(std::span<const float> x, std::span<const float> gamma, float epsilon, std::vector<float>& y) {
  const size_t width = gamma.size();
  y.assign(x.begin(), x.end());
  for (size_t at = 0; at < y.size(); at += width) RmsNormRow(std::span(y).subspan(at, width), gamma, epsilon);
}

StatusOr<Layer> ReadLayer(const Checkpoint& checkpoint, const ModelConfig& config, int index) {
  const MlaShape& shape = config.attention;
  const std::string prefix = absl::StrCat("model.layers.", index, ".");
  const auto matrix = [&](const char* name, int64_t rows, int64_t columns) {
    return checkpoint.Matrix(absl::StrCat(prefix, name, ".weight"), rows, columns);
  };
  TESSERA_ASSIGN_OR_RETURN(const MlaWeights weights, ReadMlaWeights(checkpoint, shape, index));
  TESSERA_ASSIGN_OR_RETURN(const MatrixView input_norm, matrix("input_layernorm", shape.hidden, 1));
  TESSERA_ASSIGN_OR_RETURN(const MatrixView mlp_norm, matrix("post_attention_layernorm", shape.hidden, 1));
  TESSERA_ASSIGN_OR_RETURN(const MatrixView gate, matrix("mlp.gate_proj", config.intermediate, shape.hidden));
  TESSERA_ASSIGN_OR_RETURN(const MatrixView up, matrix("mlp.up_proj", config.intermediate, shape.hidden));
  TESSERA_ASSIGN_OR_RETURN(const MatrixView down, matrix("mlp.down_proj", shape.hidden, config.intermediate));
  std::vector<Linear> query;
  for (const MatrixView& part : {weights.query, weights.query_down, weights.query_up}) {
    if (part.empty()) continue;
    TESSERA_ASSIGN_OR_RETURN(Linear packed, Pack(part));
    query.push_back(std::move(packed));
  }
  TESSERA_ASSIGN_OR_RETURN(Linear kv_down, Pack(weights.kv_down));
  TESSERA_ASSIGN_OR_RETURN(Linear kv_up, Pack(weights.kv_up));
  TESSERA_ASSIGN_OR_RETURN(Linear output, Pack(weights.output));
  TESSERA_ASSIGN_OR_RETURN(Linear packed_gate, Pack(gate));
  TESSERA_ASSIGN_OR_RETURN(Linear packed_up, Pack(up));
  TESSERA_ASSIGN_OR_RETURN(Linear packed_down, Pack(down));
  return Layer{Values(input_norm),      weights.query_norm.empty() ? std::vector<float>() : Values(weights.query_norm),
               Values(weights.kv_norm), Values(mlp_norm),
               std::move(query),        std::move(kv_down),
               std::move(kv_up),        std::move(output),
               std::move(packed_gate),  std::move(packed_up),
               std::move(packed_down)};
}

}  // namespace

struct DenseModel::State {
  ModelConfig config;
  int threads = 1;
  RopeTable rope;
  const AttentionKernel* kernel = nullptr;
  MatrixView embedding;  // in the mapping of `checkpoint`
  std::vector<float> final_norm;
  Linear head;
  std::vector<Layer> layers;

  Status Attend(const Layer& layer, int index, std::span<const float> hidden, const LatentSink& sink,
                std::vector<float>& output) const;
};

// `hidden`: [n, D], normalised. `output`: [n, D].
Status DenseModel::State::Attend(const Layer& layer, int index, std::span<const float> hidden, const LatentSink& sink,
                                 std::vector<float>& output) const {
  const MlaShape& shape = config.attention;
  const int64_t n = std::ssize(hidden) / shape.hidden;
  const int heads = shape.heads, nope = shape.nope, width = shape.qk_width(), cached = shape.cache_width();
  std::vector<float> down(n * cached), latents(n * shape.latent), query(n * heads * width);
  TESSERA_RETURN_IF_ERROR(layer.kv_down.Apply(hidden.data(), n, down.data(), threads));
  if (shape.query_rank > 0) {
    std::vector<float> low(n * shape.query_rank);
    TESSERA_RETURN_IF_ERROR(layer.query[0].Apply(hidden.data(), n, low.data(), threads));
    NormRows(std::vector<float>(low), layer.query_norm, shape.norm_epsilon, low);
    TESSERA_RETURN_IF_ERROR(layer.query[1].Apply(low.data(), n, query.data(), threads));
  } else {
    TESSERA_RETURN_IF_ERROR(layer.query[0].Apply(hidden.data(), n, query.data(), threads));
  }
  for (int64_t t = 0; t < n; ++t) {
    const std::span<float> latent(&latents[t * shape.latent], shape.latent);
    std::copy_n(&down[t * cached], shape.latent, latent.begin());
    RmsNormRow(latent, {}, shape.norm_epsilon);
    rope.Apply(&down[t * cached + shape.latent], t);
    for (int head = 0; head < heads; ++head) rope.Apply(&query[(t * heads + head) * width + nope], t);
  }
  if (sink) {
    std::vector<float> plain(n * heads * nope);
    for (int64_t row = 0; row < n * heads; ++row) std::copy_n(&query[row * width], nope, &plain[row * nope]);
    sink({index, n, latents, plain});
  }
  for (int64_t i = 0; i < std::ssize(latents); ++i) latents[i] *= layer.kv_norm[i % shape.latent];
  const int expanded_width = nope + shape.value;
  std::vector<float> expanded(n * heads * expanded_width), key(n * heads * width);
  TESSERA_RETURN_IF_ERROR(layer.kv_up.Apply(latents.data(), n, expanded.data(), threads));
  for (int64_t row = 0; row < n * heads; ++row) {
    std::copy_n(&expanded[row * expanded_width], nope, &key[row * width]);
    std::copy_n(&down[row / heads * cached + shape.latent], shape.rope, &key[row * width + nope]);
  }

  std::vector<float> attended(n * heads * shape.value), lse(n * heads, -std::numeric_limits<float>::infinity());
  const std::vector<Tile> tiles = {{0, {0, n, 1}, 0, {0, n, 1}}};
  const std::vector<Band> bands = {{{0, n}, {0, n}, -kUnboundedDiagonal, 0}};
  AttendArgs args;
  args.query = ConstTensorView::Dense(query.data(), DType::kFloat32, n, heads, width);
  args.key = ConstTensorView::Dense(key.data(), DType::kFloat32, n, heads, width);
  args.value = ConstTensorView::Dense(expanded.data() + nope, DType::kFloat32, n, heads, shape.value);
  args.value.row_stride = int64_t{heads} * expanded_width;
  args.value.head_stride = expanded_width;
  args.output = TensorView::Dense(attended.data(), DType::kFloat32, n, heads, shape.value);
  args.lse = TensorView::Dense(lse.data(), DType::kFloat32, n, heads, 1);
  args.tiles = tiles;
  args.bands = bands;
  args.score.scale = shape.Scale();
  args.threads = threads;
  TESSERA_RETURN_IF_ERROR(kernel->Attend(args));
  output.resize(n * shape.hidden);
  return layer.output.Apply(attended.data(), n, output.data(), threads);
}

StatusOr<DenseModel> DenseModel::Create(const Checkpoint& checkpoint, const ModelConfig& config, int threads) {
  const std::string instead = "; for such a model give second moments made elsewhere (--moments)";
  if (config.routed_experts > 0 && config.first_dense_layers < config.layers) {
    return absl::UnimplementedError(absl::StrCat("the model has ", config.routed_experts,
                                                 " routed experts, and this program runs dense models only", instead));
  }
  if (config.activation != "silu") {
    return absl::UnimplementedError(
        absl::StrCat("hidden_act is \"", config.activation, "\"; this program runs silu only", instead));
  }
  const MlaShape& shape = config.attention;
  TESSERA_ASSIGN_OR_RETURN(const AttentionKernel* kernel,
                           FindAttentionKernel({DType::kFloat32, shape.qk_width(), shape.value}));
  TESSERA_ASSIGN_OR_RETURN(const MatrixView embedding,
                           checkpoint.Matrix("model.embed_tokens.weight", config.vocabulary, shape.hidden));
  TESSERA_ASSIGN_OR_RETURN(const MatrixView norm, checkpoint.Matrix("model.norm.weight", shape.hidden, 1));
  MatrixView head = embedding;
  if (!config.tied_embeddings) {
    TESSERA_ASSIGN_OR_RETURN(head, checkpoint.Matrix("lm_head.weight", config.vocabulary, shape.hidden));
  }
  TESSERA_ASSIGN_OR_RETURN(Linear packed_head, Pack(head));
  auto state = std::unique_ptr<State>(
      new State{config,
                threads,
                RopeTable(shape.rope_options, shape.rope, std::min(config.max_positions, kMostWindow)),
                kernel,
                embedding,
                Values(norm),
                std::move(packed_head),
                {}});
  for (int layer = 0; layer < config.layers; ++layer) {
    TESSERA_ASSIGN_OR_RETURN(Layer read, ReadLayer(checkpoint, config, layer));
    state->layers.push_back(std::move(read));
  }
  return DenseModel(std::move(state));
}

DenseModel::DenseModel(std::unique_ptr<State> state) : state_(std::move(state)) {}
DenseModel::DenseModel(DenseModel&&) noexcept = default;
DenseModel& DenseModel::operator=(DenseModel&&) noexcept = default;
DenseModel::~DenseModel() = default;

Status DenseModel::Forward(std::span<const int> tokens, const LatentSink& sink, std::vector<float>* logits) const {
  const ModelConfig& config = state_->config;
  const int64_t n = std::ssize(tokens), hidden = config.attention.hidden;
  if (n > state_->rope.positions()) {
    return absl::InvalidArgumentError(
        absl::StrCat(n, " tokens; allowed: up to the ", state_->rope.positions(), " positions of a window"));
  }
  std::vector<float> x(n * hidden), normed, delta;
  for (int64_t t = 0; t < n; ++t) {
    if (tokens[t] < 0 || tokens[t] >= config.vocabulary) {
      return absl::InvalidArgumentError(
          absl::StrCat("token ", tokens[t], " at ", t, "; allowed: 0 to ", config.vocabulary - 1));
    }
    for (int64_t d = 0; d < hidden; ++d) x[t * hidden + d] = state_->embedding.At(tokens[t], d);
  }
  const auto add_delta = [&] {
    for (size_t i = 0; i < x.size(); ++i) x[i] += delta[i];
  };
  std::vector<float> gate(n * config.intermediate), up(n * config.intermediate);
  for (int index = 0; index < config.layers; ++index) {
    const Layer& layer = state_->layers[index];
    NormRows(x, layer.input_norm, config.norm_epsilon, normed);
    TESSERA_RETURN_IF_ERROR(state_->Attend(layer, index, normed, sink, delta));
    add_delta();
    NormRows(x, layer.mlp_norm, config.norm_epsilon, normed);
    TESSERA_RETURN_IF_ERROR(layer.gate.Apply(normed.data(), n, gate.data(), state_->threads));
    TESSERA_RETURN_IF_ERROR(layer.up.Apply(normed.data(), n, up.data(), state_->threads));
    for (size_t i = 0; i < gate.size(); ++i) gate[i] = gate[i] / (1.0f + std::exp(-gate[i])) * up[i];
    TESSERA_RETURN_IF_ERROR(layer.down.Apply(gate.data(), n, delta.data(), state_->threads));
    add_delta();
  }
  if (logits == nullptr) return absl::OkStatus();
  NormRows(x, state_->final_norm, config.norm_epsilon, normed);
  logits->resize(n * config.vocabulary);
  return state_->head.Apply(normed.data(), n, logits->data(), state_->threads);
}

StatusOr<std::vector<int>> Tokenize(const ModelConfig& config, std::string_view text) {
  if (config.tokenizer != "bytes" || config.vocabulary < 256) {
    return absl::UnimplementedError(absl::StrCat(
        "config.json says tokenizer \"", config.tokenizer, "\" and ", config.vocabulary,
        " words; this program reads texts for models with tokenizer \"bytes\" only; give second moments made elsewhere",
        " (--moments)"));
  }
  std::vector<int> tokens;
  tokens.reserve(text.size());
  for (const char c : text) tokens.push_back(static_cast<unsigned char>(c));
  return tokens;
}

StatusOr<int64_t> TapLatents(const Checkpoint& checkpoint, const ModelConfig& config, std::string_view text,
                             int threads, const LatentSink& sink) {
  TESSERA_ASSIGN_OR_RETURN(const std::vector<int> tokens, Tokenize(config, text));
  TESSERA_ASSIGN_OR_RETURN(const DenseModel model, DenseModel::Create(checkpoint, config, threads));
  const int64_t window = std::min(config.max_positions, kMostWindow);
  for (int64_t at = 0; at < std::ssize(tokens); at += window) {
    const int64_t count = std::min(window, std::ssize(tokens) - at);
    TESSERA_RETURN_IF_ERROR(model.Forward(std::span(tokens).subspan(at, count), sink, nullptr));
  }
  return std::ssize(tokens);
}

}  // namespace tessera::launcher
