#include "kernels/reference/mla.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <utility>

namespace tessera::reference {
namespace {

double Dot(std::span<const double> a, std::span<const double> b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

// x [n, in] W^T for W [out, in].
Dense Project(const Dense& x, const Dense& weight) {
  Dense y(x.rows, weight.rows);
  for (int64_t row = 0; row < x.rows; ++row) {
    for (int64_t out = 0; out < weight.rows; ++out) y(row, out) = Dot(x.row(row), weight.row(out));
  }
  return y;
}

// 1 / sqrt(mean square + epsilon) of columns [begin, end).
double InverseRms(std::span<const double> row, double epsilon) {
  return 1.0 / std::sqrt(Dot(row, row) / static_cast<double>(row.size()) + epsilon);
}

void Normalise(Dense& x, const Dense& gamma, double epsilon) {
  for (int64_t row = 0; row < x.rows; ++row) {
    const double factor = InverseRms(x.row(row), epsilon);
    for (int64_t column = 0; column < x.columns; ++column) x(row, column) *= factor * gamma(column, 0);
  }
}

// YaRN, written from the paper: frequencies whose wavelength fits beta_fast times or more into the original context
// stay, those that fit beta_slow times or fewer are divided by the factor, the ones between are blended linearly.
struct Rotation {
  std::vector<double> frequency;
  double temperature = 1.0;  // on cosine and sine

  Rotation(const RopeOptions& options, int width) {
    const auto temperature_of = [&](double mscale) {
      return options.yarn && options.yarn->factor > 1 ? 0.1 * mscale * std::log(options.yarn->factor) + 1.0 : 1.0;
    };
    const auto pair_turning = [&](double turns) {  // the (fractional) pair that turns so often in the original context
      const double positions = static_cast<double>(options.yarn->original_positions);
      return width * std::log(positions / (turns * 2 * std::numbers::pi)) / (2 * std::log(options.theta));
    };
    for (int pair = 0; pair < width / 2; ++pair) {
      const double plain = std::pow(options.theta, -2.0 * pair / width);
      double kept = 1.0;
      if (options.yarn) {
        const double low = std::max(std::floor(pair_turning(options.yarn->beta_fast)), 0.0);
        double high = std::min(std::ceil(pair_turning(options.yarn->beta_slow)), width - 1.0);
        if (high == low) high += 0.001;
        kept = 1.0 - std::clamp((pair - low) / (high - low), 0.0, 1.0);
      }
      const double factor = options.yarn ? options.yarn->factor : 1.0;
      frequency.push_back(plain * kept + plain / factor * (1.0 - kept));
    }
    if (options.yarn) temperature = temperature_of(options.yarn->mscale) / temperature_of(options.yarn->mscale_all_dim);
  }

  void Apply(double* row, RopeLayout layout, int64_t position) const {
    const auto half = static_cast<int64_t>(frequency.size());
    for (int64_t pair = 0; pair < half; ++pair) {
      double& x1 = layout == RopeLayout::kHalfSplit ? row[pair] : row[2 * pair];
      double& x2 = layout == RopeLayout::kHalfSplit ? row[pair + half] : row[2 * pair + 1];
      const double angle = static_cast<double>(position) * frequency[pair];
      const double cosine = temperature * std::cos(angle), sine = temperature * std::sin(angle);
      const double first = x1 * cosine - x2 * sine;
      x2 = x2 * cosine + x1 * sine;
      x1 = first;
    }
  }
};

double SoftmaxScale(const MlaShape& shape) {
  double scale = 1.0 / std::sqrt(static_cast<double>(shape.nope + shape.rope));
  if (const auto& yarn = shape.rope_options.yarn; yarn && yarn->factor > 1 && yarn->mscale_all_dim > 0) {
    const double m = 0.1 * yarn->mscale_all_dim * std::log(yarn->factor) + 1.0;
    scale *= m * m;
  }
  return scale;
}

Status Check(const MlaShape& shape, const MlaWeights64& weights, const Dense& hidden,
             std::span<const int64_t> positions, int64_t query_tokens) {
  const int64_t queries = int64_t{shape.heads} * shape.qk_width();
  struct Need {
    const char* name;
    const Dense& matrix;
    int64_t rows, columns;
  };
  std::vector<Need> needs = {{"kv_down", weights.kv_down, shape.cache_width(), shape.hidden},
                             {"kv_norm", weights.kv_norm, shape.latent, 1},
                             {"kv_up", weights.kv_up, int64_t{shape.heads} * (shape.nope + shape.value), shape.latent},
                             {"output", weights.output, shape.hidden, int64_t{shape.heads} * shape.value},
                             {"hidden", hidden, static_cast<int64_t>(positions.size()), shape.hidden}};
  if (shape.query_rank > 0) {
    needs.push_back({"query_down", weights.query_down, shape.query_rank, shape.hidden});
    needs.push_back({"query_norm", weights.query_norm, shape.query_rank, 1});
    needs.push_back({"query_up", weights.query_up, queries, shape.query_rank});
  } else {
    needs.push_back({"query", weights.query, queries, shape.hidden});
  }
  for (const Need& need : needs) {
    if (need.matrix.rows == need.rows && need.matrix.columns == need.columns) continue;
    return absl::InvalidArgumentError(absl::StrCat(need.name, " is [", need.matrix.rows, ", ", need.matrix.columns,
                                                   "]; needed: [", need.rows, ", ", need.columns, "]"));
  }
  if (query_tokens < 0 || query_tokens > hidden.rows) {
    return absl::InvalidArgumentError(
        absl::StrCat("query_tokens is ", query_tokens, "; allowed: 0 to the ", hidden.rows, " tokens"));
  }
  return absl::OkStatus();
}

// The parts of the layer that no way of attending changes.
struct Prepared {
  Dense latent;  // [S, C], before the norm
  Dense rope;    // [S, dr], rotated
  Dense query;   // [T, h (dn + dr)], rope part rotated
};

Prepared Prepare(const MlaShape& shape, const MlaWeights64& weights, const Dense& hidden,
                 std::span<const int64_t> positions, int64_t query_tokens) {
  const Rotation rotation(shape.rope_options, shape.rope);
  const RopeLayout layout = shape.rope_options.layout;
  const Dense down = Project(hidden, weights.kv_down);
  Prepared p{Dense(hidden.rows, shape.latent), Dense(hidden.rows, shape.rope), {}};
  for (int64_t t = 0; t < hidden.rows; ++t) {
    for (int64_t c = 0; c < shape.latent; ++c) p.latent(t, c) = down(t, c);
    for (int64_t r = 0; r < shape.rope; ++r) p.rope(t, r) = down(t, shape.latent + r);
    rotation.Apply(&p.rope(t, 0), layout, positions[t]);
  }
  const int64_t first = hidden.rows - query_tokens;
  Dense tail(query_tokens, shape.hidden);
  std::copy(hidden.values.begin() + first * shape.hidden, hidden.values.end(), tail.values.begin());
  if (shape.query_rank > 0) {
    Dense low = Project(tail, weights.query_down);
    Normalise(low, weights.query_norm, shape.norm_epsilon);
    p.query = Project(low, weights.query_up);
  } else {
    p.query = Project(tail, weights.query);
  }
  for (int64_t t = 0; t < query_tokens; ++t) {
    for (int head = 0; head < shape.heads; ++head) {
      rotation.Apply(&p.query(t, int64_t{head} * shape.qk_width() + shape.nope), layout, positions[first + t]);
    }
  }
  return p;
}

// scores -> weights that sum to 1.
void Softmax(std::vector<double>& scores) {
  const double top = *std::max_element(scores.begin(), scores.end());
  double sum = 0;
  for (double& score : scores) sum += score = std::exp(score - top);
  for (double& score : scores) score /= sum;
}

}  // namespace

Dense ToDense(const MatrixView& view) {
  Dense dense(view.rows, view.columns);
  for (int64_t row = 0; row < view.rows; ++row) {
    for (int64_t column = 0; column < view.columns; ++column) dense(row, column) = view.At(row, column);
  }
  return dense;
}

MlaWeights64 ToDense(const MlaWeights& weights) {
  return {ToDense(weights.query),   ToDense(weights.query_down), ToDense(weights.query_norm), ToDense(weights.query_up),
          ToDense(weights.kv_down), ToDense(weights.kv_norm),    ToDense(weights.kv_up),      ToDense(weights.output)};
}

StatusOr<Dense> MlaLayer(const MlaShape& shape, const MlaWeights64& weights, const Dense& hidden,
                         std::span<const int64_t> positions, int64_t query_tokens, MlaForm form) {
  TESSERA_RETURN_IF_ERROR(Check(shape, weights, hidden, positions, query_tokens));
  if (form == MlaForm::kAbsorbed) return TplaLayer(shape, weights, hidden, positions, query_tokens, {});
  Prepared p = Prepare(shape, weights, hidden, positions, query_tokens);
  Normalise(p.latent, weights.kv_norm, shape.norm_epsilon);
  const Dense expanded = Project(p.latent, weights.kv_up);  // [S, h (dn + dv)]
  const double scale = SoftmaxScale(shape);
  const int64_t first = hidden.rows - query_tokens;
  Dense heads(query_tokens, int64_t{shape.heads} * shape.value);
  for (int64_t t = 0; t < query_tokens; ++t) {
    for (int head = 0; head < shape.heads; ++head) {
      const auto query = p.query.row(t).subspan(head * shape.qk_width(), shape.qk_width());
      std::vector<double> scores(first + t + 1);
      const int64_t at = int64_t{head} * (shape.nope + shape.value);
      for (int64_t s = 0; s <= first + t; ++s) {
        scores[s] = scale * (Dot(query.first(shape.nope), expanded.row(s).subspan(at, shape.nope)) +
                             Dot(query.subspan(shape.nope), p.rope.row(s)));
      }
      Softmax(scores);
      for (int64_t s = 0; s <= first + t; ++s) {
        for (int v = 0; v < shape.value; ++v) {
          heads(t, int64_t{head} * shape.value + v) += scores[s] * expanded(s, at + shape.nope + v);
        }
      }
    }
  }
  return Project(heads, weights.output);
}

StatusOr<Dense> TplaLayer(const MlaShape& shape, const MlaWeights64& weights, const Dense& hidden,
                          std::span<const int64_t> positions, int64_t query_tokens, const TplaOptions& options) {
  TESSERA_RETURN_IF_ERROR(Check(shape, weights, hidden, positions, query_tokens));
  const int groups = options.groups;
  if (groups < 1 || shape.latent % groups != 0) {
    return absl::InvalidArgumentError(absl::StrCat("groups is ", groups, "; allowed: divisors of ", shape.latent));
  }
  if ((!options.mu.empty() && std::ssize(options.mu) != groups) ||
      (options.norm == LatentNorm::kLocal && std::ssize(options.energy_share) != groups)) {
    return absl::InvalidArgumentError(absl::StrCat("mu and energy_share need ", groups, " entries"));
  }
  const Prepared p = Prepare(shape, weights, hidden, positions, query_tokens);
  const int width = shape.latent / groups;
  Dense latent = p.latent;
  if (options.norm == LatentNorm::kExact) {
    Normalise(latent, weights.kv_norm, shape.norm_epsilon);
  } else {
    for (int64_t s = 0; s < latent.rows; ++s) {
      for (int group = 0; group < groups; ++group) {
        // Multiplying by 1 / RMS(c): RMS(c) = RMS(c_i) / sqrt(g p_i), hence the root above the line.
        const double factor = InverseRms(p.latent.row(s).subspan(group * width, width), shape.norm_epsilon) *
                              std::sqrt(groups * options.energy_share[group]);
        for (int c = group * width; c < (group + 1) * width; ++c) latent(s, c) *= factor * weights.kv_norm(c, 0);
      }
    }
  }
  const double scale = SoftmaxScale(shape);
  const int64_t first = hidden.rows - query_tokens;
  Dense heads(query_tokens, int64_t{shape.heads} * shape.value);
  for (int64_t t = 0; t < query_tokens; ++t) {
    for (int head = 0; head < shape.heads; ++head) {
      const auto query = p.query.row(t).subspan(head * shape.qk_width(), shape.qk_width());
      const int64_t at = int64_t{head} * (shape.nope + shape.value);
      std::vector<double> absorbed(shape.latent);
      for (int n = 0; n < shape.nope; ++n) {
        for (int c = 0; c < shape.latent; ++c) absorbed[c] += query[n] * weights.kv_up(at + n, c);
      }
      std::vector<std::vector<double>> scores(groups, std::vector<double>(first + t + 1));
      for (int64_t s = 0; s <= first + t; ++s) {
        const double rope = Dot(query.subspan(shape.nope), p.rope.row(s));
        double sum = rope;
        for (int group = 0; group < groups; ++group) {
          const double mu = options.mu.empty() ? 1.0 : options.mu[group];
          const auto part = std::span<const double>(absorbed).subspan(group * width, width);
          const double logit = mu * Dot(part, latent.row(s).subspan(group * width, width));
          scores[group][s] = scale * (logit + rope);
          sum += logit;
        }
        if (!options.share_logits) continue;
        for (auto& row : scores) row[s] = scale * sum;
      }
      for (int group = 0; group < groups; ++group) {
        Softmax(scores[group]);
        std::vector<double> mixed(width);
        for (int64_t s = 0; s <= first + t; ++s) {
          for (int c = 0; c < width; ++c) mixed[c] += scores[group][s] * latent(s, group * width + c);
        }
        for (int v = 0; v < shape.value; ++v) {
          heads(t, int64_t{head} * shape.value + v) +=
              options.out_scale * Dot(mixed, weights.kv_up.row(at + shape.nope + v).subspan(group * width, width));
        }
      }
    }
  }
  return Project(heads, weights.output);
}

StatusOr<Dense> MlaCache(const MlaShape& shape, const MlaWeights64& weights, const Dense& hidden,
                         std::span<const int64_t> positions) {
  TESSERA_RETURN_IF_ERROR(Check(shape, weights, hidden, positions, 0));
  Prepared p = Prepare(shape, weights, hidden, positions, 0);
  Normalise(p.latent, weights.kv_norm, shape.norm_epsilon);
  Dense cache(hidden.rows, shape.cache_width());
  for (int64_t t = 0; t < hidden.rows; ++t) {
    std::copy_n(&p.latent(t, 0), shape.latent, &cache(t, 0));
    std::copy_n(&p.rope(t, 0), shape.rope, &cache(t, shape.latent));
  }
  return cache;
}

StatusOr<Dense> MlaLatents(const MlaShape& shape, const MlaWeights64& weights, const Dense& hidden) {
  MlaWeights64 plain = weights;
  plain.kv_norm = Dense(shape.latent, 1);
  std::fill(plain.kv_norm.values.begin(), plain.kv_norm.values.end(), 1.0);
  const std::vector<int64_t> positions(hidden.rows);
  TESSERA_ASSIGN_OR_RETURN(const Dense cache, MlaCache(shape, plain, hidden, positions));
  Dense latents(hidden.rows, shape.latent);
  for (int64_t t = 0; t < hidden.rows; ++t) std::copy_n(&cache.values[t * cache.columns], shape.latent, &latents(t, 0));
  return latents;
}

}  // namespace tessera::reference
