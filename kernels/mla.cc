#include "kernels/mla.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>
#include <string>
#include <string_view>

namespace tessera {
namespace {

// DeepSeek's temperature: 1 within the trained context, growing with the logarithm of the extension.
double Temperature(double factor, double strength) {
  return factor <= 1.0 ? 1.0 : 0.1 * strength * std::log(factor) + 1.0;
}

// The (fractional) pair whose wave turns `rotations` times over the trained positions.
double PairTurning(double rotations, const RopeOptions& options, int width) {
  const double positions = static_cast<double>(options.yarn->original_positions);
  return width * std::log(positions / (rotations * 2.0 * std::numbers::pi)) / (2.0 * std::log(options.theta));
}

Status Invalid(std::string_view field, const auto& value, std::string_view allowed) {
  return absl::InvalidArgumentError(
      absl::StrCat("latent attention: ", std::string(field), " is ", value, ", but must be ", std::string(allowed)));
}

Status ValidateRope(const RopeOptions& rope) {
  if (!std::isfinite(rope.theta) || rope.theta <= 1.0) return Invalid("rope theta", rope.theta, "above 1");
  if (!rope.yarn.has_value()) return absl::OkStatus();
  const YarnScaling& yarn = *rope.yarn;
  if (!std::isfinite(yarn.factor) || yarn.factor < 1.0) return Invalid("yarn factor", yarn.factor, "at least 1");
  if (yarn.original_positions < 1) return Invalid("yarn original_positions", yarn.original_positions, "at least 1");
  if (!std::isfinite(yarn.beta_slow) || yarn.beta_slow <= 0.0) {
    return Invalid("yarn beta_slow", yarn.beta_slow, "positive");
  }
  if (!std::isfinite(yarn.beta_fast) || yarn.beta_fast < yarn.beta_slow) {
    return Invalid("yarn beta_fast", yarn.beta_fast, "at least beta_slow");
  }
  if (!std::isfinite(yarn.mscale) || yarn.mscale < 0.0) return Invalid("yarn mscale", yarn.mscale, "not negative");
  if (!std::isfinite(yarn.mscale_all_dim) || yarn.mscale_all_dim < 0.0) {
    return Invalid("yarn mscale_all_dim", yarn.mscale_all_dim, "not negative");
  }
  return absl::OkStatus();
}

Status ValidateMatrix(std::string_view name, const MatrixView& matrix, int64_t rows, int64_t columns) {
  if (!matrix.empty() && matrix.rows == rows && matrix.columns == columns) return absl::OkStatus();
  const std::string given =
      matrix.empty() ? "is missing" : absl::StrCat("is [", matrix.rows, ", ", matrix.columns, "]");
  return absl::InvalidArgumentError(absl::StrCat("latent attention: ", std::string(name), " ", given,
                                                 ", but the layer needs [", rows, ", ", columns, "]"));
}

Status ValidateAbsent(std::string_view name, const MatrixView& matrix, std::string_view why) {
  if (matrix.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("latent attention: ", std::string(name), " is given, but ", std::string(why)));
}

}  // namespace

float MlaShape::Scale() const {
  double scale = 1.0 / std::sqrt(static_cast<double>(qk_width()));
  if (rope_options.yarn.has_value()) {
    const double temperature = Temperature(rope_options.yarn->factor, rope_options.yarn->mscale_all_dim);
    scale *= temperature * temperature;
  }
  return static_cast<float>(scale);
}

Status Validate(const MlaShape& shape) {
  const std::array<std::pair<std::string_view, int>, 5> positive = {{{"hidden", shape.hidden},
                                                                     {"heads", shape.heads},
                                                                     {"latent", shape.latent},
                                                                     {"nope", shape.nope},
                                                                     {"value", shape.value}}};
  for (const auto& [field, value] : positive) {
    if (value < 1) return Invalid(field, value, "at least 1");
  }
  if (shape.query_rank < 0) return Invalid("query_rank", shape.query_rank, "at least 0");
  if (shape.rope < 0 || shape.rope % 2 != 0) return Invalid("rope", shape.rope, "even and not negative");
  if (!std::isfinite(shape.norm_epsilon) || shape.norm_epsilon < 0.0f) {
    return Invalid("norm_epsilon", shape.norm_epsilon, "not negative");
  }
  return ValidateRope(shape.rope_options);
}

Status Validate(const MlaShape& shape, const MlaWeights& weights) {
  TESSERA_RETURN_IF_ERROR(Validate(shape));
  const int64_t heads = shape.heads;
  const int64_t query_rows = heads * shape.qk_width();
  if (shape.query_rank > 0) {
    TESSERA_RETURN_IF_ERROR(ValidateAbsent("query", weights.query, "query_rank is set"));
    TESSERA_RETURN_IF_ERROR(ValidateMatrix("query_down", weights.query_down, shape.query_rank, shape.hidden));
    TESSERA_RETURN_IF_ERROR(ValidateMatrix("query_norm", weights.query_norm, shape.query_rank, 1));
    TESSERA_RETURN_IF_ERROR(ValidateMatrix("query_up", weights.query_up, query_rows, shape.query_rank));
  } else {
    TESSERA_RETURN_IF_ERROR(ValidateMatrix("query", weights.query, query_rows, shape.hidden));
    TESSERA_RETURN_IF_ERROR(ValidateAbsent("query_down", weights.query_down, "query_rank is 0"));
    TESSERA_RETURN_IF_ERROR(ValidateAbsent("query_norm", weights.query_norm, "query_rank is 0"));
    TESSERA_RETURN_IF_ERROR(ValidateAbsent("query_up", weights.query_up, "query_rank is 0"));
  }
  TESSERA_RETURN_IF_ERROR(ValidateMatrix("kv_down", weights.kv_down, shape.cache_width(), shape.hidden));
  TESSERA_RETURN_IF_ERROR(ValidateMatrix("kv_norm", weights.kv_norm, shape.latent, 1));
  TESSERA_RETURN_IF_ERROR(
      ValidateMatrix("kv_up", weights.kv_up, heads * (int64_t{shape.nope} + shape.value), shape.latent));
  return ValidateMatrix("output", weights.output, shape.hidden, heads * shape.value);
}

RopeFrequencies ComputeRopeFrequencies(const RopeOptions& options, int width) {
  RopeFrequencies result;
  const int half = width / 2;
  result.frequency.resize(half);
  for (int i = 0; i < half; ++i) result.frequency[i] = std::pow(options.theta, -2.0 * i / width);
  if (!options.yarn.has_value()) return result;
  const YarnScaling& yarn = *options.yarn;
  // Waves that turn more than beta_fast times over the trained positions keep their frequency, those that turn less
  // than beta_slow times are stretched by the factor, and those between are blended linearly by their index.
  const double low = std::max(0.0, std::floor(PairTurning(yarn.beta_fast, options, width)));
  double high = std::min(width - 1.0, std::ceil(PairTurning(yarn.beta_slow, options, width)));
  if (low == high) high += 0.001;
  for (int i = 0; i < half; ++i) {
    const double stretched = std::clamp((i - low) / (high - low), 0.0, 1.0);
    result.frequency[i] *= stretched / yarn.factor + (1.0 - stretched);
  }
  result.attention_factor = Temperature(yarn.factor, yarn.mscale) / Temperature(yarn.factor, yarn.mscale_all_dim);
  return result;
}

RopeTable::RopeTable(const RopeOptions& options, int width, int64_t positions)
    : layout_(options.layout), half_(width / 2), positions_(std::max<int64_t>(0, positions)) {
  const RopeFrequencies frequencies = ComputeRopeFrequencies(options, width);
  const size_t count = static_cast<size_t>(positions_) * half_;
  cosine_.resize(count);
  sine_.resize(count);
  for (int64_t position = 0; position < positions_; ++position) {
    for (int i = 0; i < half_; ++i) {
      const double angle = static_cast<double>(position) * frequencies.frequency[i];
      cosine_[position * half_ + i] = static_cast<float>(std::cos(angle) * frequencies.attention_factor);
      sine_[position * half_ + i] = static_cast<float>(std::sin(angle) * frequencies.attention_factor);
    }
  }
}

void RopeTable::Apply(float* row, int64_t position) const {
  const float* const cosine = cosine_.data() + position * half_;
  const float* const sine = sine_.data() + position * half_;
  const int step = layout_ == RopeLayout::kHalfSplit ? 1 : 2;
  float* const first = row;
  float* const second = layout_ == RopeLayout::kHalfSplit ? row + half_ : row + 1;
  for (int i = 0; i < half_; ++i) {
    const float x1 = first[i * step], x2 = second[i * step];
    first[i * step] = x1 * cosine[i] - x2 * sine[i];
    second[i * step] = x2 * cosine[i] + x1 * sine[i];
  }
}

float RmsNormRow(std::span<float> row, std::span<const float> gamma, float epsilon) {
  if (row.empty()) return 1.0f / std::sqrt(epsilon);
  // fp64 sums cannot overflow or lose small elements; several of them, so that additions overlap.
  std::array<double, 8> sums{};
  for (size_t i = 0; i < row.size(); ++i) sums[i % sums.size()] += static_cast<double>(row[i]) * row[i];
  double sum = 0;
  for (double part : sums) sum += part;
  const auto factor = static_cast<float>(1.0 / std::sqrt(sum / static_cast<double>(row.size()) + epsilon));
  for (size_t i = 0; i < row.size(); ++i) row[i] *= gamma.empty() ? factor : factor * gamma[i];
  return factor;
}

}  // namespace tessera
