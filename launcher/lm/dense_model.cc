#include "launcher/lm/dense_model.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <utility>

#include "launcher/lm/text.h"

namespace tessera::launcher {
namespace {

// Calibration needs typical latents, not the longest context that a model can serve.
constexpr int64_t kMostWindow = 4096;

// What this program cannot run, it can still convert.
Status WithWayOut(const Status& status) {
  if (status.code() != absl::StatusCode::kUnimplemented) return status;
  return absl::UnimplementedError(
      absl::StrCat(std::string(status.message()), "; for such a model give second moments made elsewhere (--moments)"));
}

}  // namespace

StatusOr<DenseModel> DenseModel::Create(const Checkpoint& checkpoint, const ModelConfig& config, int threads) {
  const MlaShape& shape = config.attention;
  TESSERA_ASSIGN_OR_RETURN(LanguageModel language, LanguageModel::Load(checkpoint, config, DType::kFloat32, threads));
  TESSERA_ASSIGN_OR_RETURN(const AttentionKernel* kernel,
                           FindAttentionKernel({DType::kFloat32, shape.qk_width(), shape.value}));
  DenseModel model(std::move(language),
                   RopeTable(shape.rope_options, shape.rope, std::min(config.max_positions, kMostWindow)), kernel,
                   threads);
  const std::vector<float> ones(shape.latent, 1.0f);
  for (int i = 0; i < config.layers; ++i) {
    TESSERA_ASSIGN_OR_RETURN(MlaWeights weights, ReadMlaWeights(checkpoint, shape, i));
    std::vector<float> gamma(shape.latent);
    for (int c = 0; c < shape.latent; ++c) gamma[c] = weights.kv_norm.At(c, 0);
    weights.kv_norm = {ones.data(), DType::kFloat32, shape.latent, 1};
    TESSERA_ASSIGN_OR_RETURN(MlaProjections maps, MlaProjections::Create(shape, weights, MlaShare::Whole(shape),
                                                                         MlaForm::kExpanded, DType::kFloat32));
    model.layers_.push_back({std::move(maps), std::move(gamma)});
  }
  return model;
}

// normed [n, D] -> out [n, D].
Status DenseModel::Attend(int index, std::span<const int64_t> positions, const float* normed, const LatentSink& sink,
                          float* out) const {
  const MlaShape& shape = language_.config().attention;
  const Layer& layer = layers_[index];
  const int64_t n = std::ssize(positions), heads = shape.heads, cached = shape.cache_width();
  std::vector<float> kv(n * cached), query(n * heads * shape.qk_width()), key(query.size());
  std::vector<float> value(n * heads * shape.value), attended(value.size());
  TESSERA_RETURN_IF_ERROR(layer.maps.ProjectCacheRows(normed, positions, rope_, kv.data(), threads_));
  TESSERA_RETURN_IF_ERROR(layer.maps.ProjectQuery(normed, positions, rope_, query.data(), threads_));
  if (sink) {
    std::vector<float> latents(n * shape.latent), plain(n * heads * shape.nope);
    for (int64_t t = 0; t < n; ++t) std::copy_n(&kv[t * cached], shape.latent, &latents[t * shape.latent]);
    for (int64_t i = 0; i < n * heads; ++i)
      std::copy_n(&query[i * shape.qk_width()], shape.nope, &plain[i * shape.nope]);
    sink({index, n, latents, plain});
  }
  for (int64_t t = 0; t < n; ++t) {
    for (int c = 0; c < shape.latent; ++c) kv[t * cached + c] *= layer.kv_gamma[c];
  }
  TESSERA_RETURN_IF_ERROR(layer.maps.Expand(kv.data(), n, key.data(), value.data(), threads_));

  std::vector<float> lse(n * heads, -std::numeric_limits<float>::infinity());
  const std::vector<Tile> tiles = {{0, {0, n, 1}, 0, {0, n, 1}}};
  const std::vector<Band> bands = {{{0, n}, {0, n}, -kUnboundedDiagonal, 0}};
  AttendArgs args;
  args.query = ConstTensorView::Dense(query.data(), DType::kFloat32, n, shape.heads, shape.qk_width());
  args.key = ConstTensorView::Dense(key.data(), DType::kFloat32, n, shape.heads, shape.qk_width());
  args.value = ConstTensorView::Dense(value.data(), DType::kFloat32, n, shape.heads, shape.value);
  args.output = TensorView::Dense(attended.data(), DType::kFloat32, n, shape.heads, shape.value);
  args.lse = TensorView::Dense(lse.data(), DType::kFloat32, n, shape.heads, 1);
  args.tiles = tiles;
  args.bands = bands;
  args.score.scale = shape.Scale();
  args.threads = threads_;
  TESSERA_RETURN_IF_ERROR(kernel_->Attend(args));
  return layer.maps.ProjectOutput(attended.data(), n, out, threads_);
}

Status DenseModel::Forward(std::span<const int> tokens, const LatentSink& sink, std::vector<float>* logits) const {
  if (std::ssize(tokens) > window()) {
    return absl::InvalidArgumentError(
        absl::StrCat(tokens.size(), " tokens; allowed: up to the ", window(), " positions of a window"));
  }
  std::vector<int64_t> positions(tokens.size());
  std::iota(positions.begin(), positions.end(), int64_t{0});
  TESSERA_ASSIGN_OR_RETURN(const std::vector<float> hidden,
                           language_.Run(tokens, [&](int layer, const float* normed, float* out) {
                             return Attend(layer, positions, normed, sink, out);
                           }));
  if (logits == nullptr) return absl::OkStatus();
  TESSERA_ASSIGN_OR_RETURN(*logits, language_.Logits(hidden));
  return absl::OkStatus();
}

StatusOr<int64_t> TapLatents(const Checkpoint& checkpoint, const ModelConfig& config, std::string_view text,
                             int threads, const LatentSink& sink) {
  const StatusOr<std::vector<int>> tokens = Tokenize(text, config);
  if (!tokens.ok()) return WithWayOut(tokens.status());
  const StatusOr<DenseModel> model = DenseModel::Create(checkpoint, config, threads);
  if (!model.ok()) return WithWayOut(model.status());
  for (int64_t at = 0; at < std::ssize(*tokens); at += model->window()) {
    const int64_t count = std::min(model->window(), std::ssize(*tokens) - at);
    TESSERA_RETURN_IF_ERROR(model->Forward(std::span(*tokens).subspan(at, count), sink, nullptr));
  }
  return std::ssize(*tokens);
}

}  // namespace tessera::launcher
