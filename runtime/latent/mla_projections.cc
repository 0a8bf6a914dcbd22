#include "runtime/latent/mla_projections.h"

#include <algorithm>
#include <cmath>

namespace tessera {
namespace {

// Nothing where the share needs nothing.
Status Emplace(std::optional<Linear>& linear, const std::vector<MatrixView>& weights, DType compute,
               bool transposed = false) {
  if (weights.empty()) return absl::OkStatus();
  TESSERA_ASSIGN_OR_RETURN(Linear made, Linear::Create(weights, compute, transposed));
  linear.emplace(std::move(made));
  return absl::OkStatus();
}

}  // namespace

StatusOr<MlaProjections> MlaProjections::Create(const MlaShape& shape, const MlaWeights& weights, const MlaShare& share,
                                                MlaForm form, DType compute) {
  TESSERA_ASSIGN_OR_RETURN(ShareWeights selected, SelectWeights(shape, weights, share, form));
  MlaProjections result;
  result.shape_ = shape;
  result.share_ = share;
  result.query_norm_ = std::move(selected.query_norm);
  result.kv_norm_ = std::move(selected.kv_norm);
  TESSERA_RETURN_IF_ERROR(Emplace(result.kv_down_, selected.kv_down, compute));
  TESSERA_RETURN_IF_ERROR(Emplace(result.query_, selected.query, compute));
  TESSERA_RETURN_IF_ERROR(Emplace(result.query_down_, selected.query_down, compute));
  TESSERA_RETURN_IF_ERROR(Emplace(result.query_up_, selected.query_up, compute));
  TESSERA_RETURN_IF_ERROR(Emplace(result.output_, selected.output, compute));
  TESSERA_RETURN_IF_ERROR(Emplace(result.kv_up_, selected.kv_up, compute));
  TESSERA_RETURN_IF_ERROR(Emplace(result.absorb_, selected.absorb, compute, /*transposed=*/true));
  TESSERA_RETURN_IF_ERROR(Emplace(result.value_up_, selected.value_up, compute));
  return result;
}

void MlaProjections::Normalise(std::span<float> latent) const {
  if (!local_energy_share_) {
    RmsNormRow(latent, kv_norm_, shape_.norm_epsilon);
    return;
  }
  const auto slice = latent.subspan(share_.latent_columns.begin, share_.latent_columns.size());
  double squares = 0;
  for (float x : slice) squares += static_cast<double>(x) * x;
  const double estimated = squares / (static_cast<double>(shape_.latent) * *local_energy_share_);
  const auto factor = static_cast<float>(1.0 / std::sqrt(estimated + shape_.norm_epsilon));
  for (size_t i = 0; i < latent.size(); ++i) latent[i] *= factor * kv_norm_[i];
}

Status MlaProjections::ProjectCacheRows(const float* hidden, std::span<const int64_t> positions, const RopeTable& rope,
                                        float* kv, int threads) const {
  const auto rows = static_cast<int64_t>(positions.size());
  TESSERA_RETURN_IF_ERROR(kv_down_->Apply(hidden, rows, kv, threads));
  for (int64_t r = 0; r < rows; ++r) {
    float* row = kv + r * shape_.cache_width();
    Normalise({row, static_cast<size_t>(shape_.latent)});
    rope.Apply(row + shape_.latent, positions[r]);
  }
  return absl::OkStatus();
}

Status MlaProjections::ProjectQuery(const float* hidden, std::span<const int64_t> positions, const RopeTable& rope,
                                    float* query, int threads) const {
  const auto rows = static_cast<int64_t>(positions.size());
  const int heads = share_.query_heads.size();
  if (heads == 0) return absl::OkStatus();
  if (query_down_) {
    std::vector<float> low(rows * shape_.query_rank);
    TESSERA_RETURN_IF_ERROR(query_down_->Apply(hidden, rows, low.data(), threads));
    for (int64_t r = 0; r < rows; ++r) {
      RmsNormRow({low.data() + r * shape_.query_rank, static_cast<size_t>(shape_.query_rank)}, query_norm_,
                 shape_.norm_epsilon);
    }
    TESSERA_RETURN_IF_ERROR(query_up_->Apply(low.data(), rows, query, threads));
  } else {
    TESSERA_RETURN_IF_ERROR(query_->Apply(hidden, rows, query, threads));
  }
  for (int64_t r = 0; r < rows; ++r) {
    for (int head = 0; head < heads; ++head) {
      rope.Apply(query + (r * heads + head) * shape_.qk_width() + shape_.nope, positions[r]);
    }
  }
  return absl::OkStatus();
}

Status MlaProjections::ProjectOutput(const float* value, int64_t rows, float* hidden, int threads) const {
  if (!output_) {
    std::fill_n(hidden, rows * shape_.hidden, 0.0f);
    return absl::OkStatus();
  }
  return output_->Apply(value, rows, hidden, threads);
}

Status MlaProjections::Expand(const float* kv, int64_t rows, float* key, float* value, int threads) const {
  const int64_t head_width = shape_.nope + shape_.value;
  std::vector<float> both(rows * shape_.heads * head_width);
  TESSERA_RETURN_IF_ERROR(kv_up_->Apply(kv, rows, shape_.cache_width(), both.data(), threads));
  for (int64_t r = 0; r < rows; ++r) {
    const float* rope_key = kv + r * shape_.cache_width() + shape_.latent;
    for (int head = 0; head < shape_.heads; ++head) {
      const float* from = both.data() + (r * shape_.heads + head) * head_width;
      float* to = key + (r * shape_.heads + head) * shape_.qk_width();
      std::copy_n(from, shape_.nope, to);
      std::copy_n(rope_key, shape_.rope, to + shape_.nope);
      std::copy_n(from + shape_.nope, shape_.value, value + (r * shape_.heads + head) * shape_.value);
    }
  }
  return absl::OkStatus();
}

Status MlaProjections::Absorb(const float* query, int64_t rows, float* absorbed, int threads) const {
  const int heads = share_.absorbed_heads.size();
  if (heads == 0) return absl::OkStatus();
  const int columns = latent_columns();
  std::vector<float> nope(rows * heads * shape_.nope), latent(rows * heads * int64_t{columns});
  for (int64_t i = 0; i < rows * heads; ++i) {
    std::copy_n(query + i * shape_.qk_width(), shape_.nope, nope.data() + i * shape_.nope);
  }
  TESSERA_RETURN_IF_ERROR(absorb_->Apply(nope.data(), rows, latent.data(), threads));
  for (int64_t i = 0; i < rows * heads; ++i) {
    float* to = absorbed + i * (columns + shape_.rope);
    std::copy_n(latent.data() + i * columns, columns, to);
    std::copy_n(query + i * shape_.qk_width() + shape_.nope, shape_.rope, to + columns);
  }
  return absl::OkStatus();
}

Status MlaProjections::ProjectValue(const float* latent_output, int64_t rows, float* value, int threads) const {
  if (!value_up_) return absl::OkStatus();
  return value_up_->Apply(latent_output, rows, value, threads);
}

int64_t MlaProjections::weight_bytes() const {
  int64_t bytes = 0;
  for (const auto* linear : {&query_, &query_down_, &query_up_, &kv_down_, &output_, &kv_up_, &absorb_, &value_up_}) {
    if (linear->has_value()) bytes += (*linear)->weight_bytes();
  }
  return bytes;
}

}  // namespace tessera
