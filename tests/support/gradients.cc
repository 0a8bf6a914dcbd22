#include "tests/support/gradients.h"

#include <limits>

#include "tests/support/local_tensors.h"

namespace tessera::testing {
namespace {

// Gradients in the arithmetic of Real. `rounded` keeps the output in the problem's dtype, as a saved tensor is, and
// rounds what is multiplied with it as RoundWeight does.
template <typename Real>
struct RealGradients {
  const DType weights;  // the type they are rounded to
  std::vector<Real> query, key, value, sink;
  // Largest sum of absolute terms of each: what the rounding errors of the arithmetic are relative to, since the terms
  // of a gradient cancel. And the sum of their squares, which rounding each term to bf16 is relative to.
  struct Terms {
    std::vector<double> query, key, value, sink;
  } terms, squares;

  RealGradients(const Problem& p, const Tensors& tensors, const OutputGradient& output_gradient, bool rounded,
                DType weight_type)
      : weights(weight_type),
        query(p.query_tokens * p.query_heads * p.qk_width),
        key(p.key_tokens * p.kv_heads * p.qk_width),
        value(p.key_tokens * p.kv_heads * p.v_width),
        sink(p.score.sink ? p.query_heads : 0),
        terms{std::vector<double>(query.size()), std::vector<double>(key.size()), std::vector<double>(value.size()),
              std::vector<double>(sink.size())},
        squares(terms) {
    for (int h = 0; h < p.query_heads; ++h) {
      for (int64_t q = 0; q < p.query_tokens; ++q) AddRow(p, tensors, output_gradient, rounded, q, h);
    }
  }

  void AddRow(const Problem& p, const Tensors& t, const OutputGradient& output_gradient, bool rounded, int64_t q,
              int h) {
    const auto at = [&](const std::vector<std::byte>& data, int64_t row, int heads, int head, int width, int d) {
      return static_cast<Real>(LoadAsDouble(data.data(), p.dtype, (row * heads + head) * width + d));
    };
    const int kv = h / p.group();
    std::vector<int64_t> keys;
    std::vector<Real> scores, slopes;  // capped score with bias; d(score) / d(scaled dot)
    for (int64_t k = 0; k < p.key_tokens; ++k) {
      const auto allows = [&](const Band& band) { return band.Allows(q, k); };
      if (std::none_of(p.mask.bands().begin(), p.mask.bands().end(), allows)) continue;
      Real s = 0;
      for (int d = 0; d < p.qk_width; ++d) {
        s += at(t.query, q, p.query_heads, h, p.qk_width, d) * at(t.key, k, p.kv_heads, kv, p.qk_width, d);
      }
      s *= static_cast<Real>(p.EffectiveScale());
      Real slope = 1;
      if (p.score.soft_cap > 0) {
        const Real tanh = std::tanh(s / static_cast<Real>(p.score.soft_cap));
        s = static_cast<Real>(p.score.soft_cap) * tanh;
        slope = 1 - tanh * tanh;
      }
      if (p.score.alibi) s -= static_cast<Real>(t.alibi_slopes[h]) * std::abs(q + p.key_tokens - p.query_tokens - k);
      keys.push_back(k);
      scores.push_back(s);
      slopes.push_back(slope);
    }
    Real most = p.score.sink ? static_cast<Real>(t.sinks[h]) : -std::numeric_limits<Real>::infinity();
    for (Real s : scores) most = std::max(most, s);
    Real sum = p.score.sink ? std::exp(static_cast<Real>(t.sinks[h]) - most) : Real{0};
    for (Real s : scores) sum += std::exp(s - most);
    if (keys.empty() && !p.score.sink) return;
    std::vector<Real> output(p.v_width, 0);
    for (size_t i = 0; i < keys.size(); ++i) {
      const Real weight = std::exp(scores[i] - most);
      const Real factor = rounded ? static_cast<Real>(RoundWeight(weights, static_cast<float>(weight))) : weight;
      for (int d = 0; d < p.v_width; ++d) {
        output[d] += factor / sum * at(t.value, keys[i], p.kv_heads, kv, p.v_width, d);
      }
    }
    Real delta = 0;
    double delta_terms = 0;
    for (int d = 0; d < p.v_width; ++d) {
      if (rounded) {
        uint64_t storage = 0;
        StoreFromDouble(&storage, p.dtype, 0, static_cast<double>(output[d]));
        output[d] = static_cast<Real>(LoadAsDouble(&storage, p.dtype, 0));
      }
      const Real term = output[d] * at(output_gradient, q, p.query_heads, h, p.v_width, d);
      delta += term;
      delta_terms += std::abs(term);
    }
    for (size_t i = 0; i < keys.size(); ++i) {
      const Real weight = std::exp(scores[i] - most) / sum;
      Real weight_gradient = 0;
      double weight_terms = delta_terms;
      for (int d = 0; d < p.v_width; ++d) {
        const Real g = at(output_gradient, q, p.query_heads, h, p.v_width, d);
        const Real term = g * at(t.value, keys[i], p.kv_heads, kv, p.v_width, d);
        weight_gradient += term;
        weight_terms += std::abs(term);
        const Real factor = rounded ? static_cast<Real>(RoundWeight(weights, static_cast<float>(weight))) : weight;
        Add(value, terms.value, squares.value, (keys[i] * p.kv_heads + kv) * p.v_width + d, factor * g,
            std::abs(weight * g));
      }
      Real dot_gradient = weight * (weight_gradient - delta) * slopes[i] * static_cast<Real>(p.EffectiveScale());
      if (rounded) dot_gradient = static_cast<Real>(RoundWeight(weights, static_cast<float>(dot_gradient)));
      const double dot_terms = weight * weight_terms * slopes[i] * p.EffectiveScale();
      for (int d = 0; d < p.qk_width; ++d) {
        const Real of_key = at(t.key, keys[i], p.kv_heads, kv, p.qk_width, d);
        const Real of_query = at(t.query, q, p.query_heads, h, p.qk_width, d);
        Add(query, terms.query, squares.query, (q * p.query_heads + h) * p.qk_width + d, dot_gradient * of_key,
            dot_terms * std::abs(of_key));
        Add(key, terms.key, squares.key, (keys[i] * p.kv_heads + kv) * p.qk_width + d, dot_gradient * of_query,
            dot_terms * std::abs(of_query));
      }
    }
    if (p.score.sink) {
      const Real weight = std::exp(static_cast<Real>(t.sinks[h]) - most) / sum;
      Add(sink, terms.sink, squares.sink, h, -weight * delta, weight * delta_terms);
    }
  }

  static void Add(std::vector<Real>& values, std::vector<double>& terms_of, std::vector<double>& squares_of,
                  int64_t index, Real value, double magnitude) {
    values[index] += value;
    terms_of[index] += magnitude;
    squares_of[index] += magnitude * magnitude;
  }
};

std::vector<double> Rounded(const std::vector<float>& values, DType dtype) {
  std::vector<double> rounded(values.size());
  for (size_t i = 0; i < values.size(); ++i) {
    uint64_t storage = 0;
    StoreFromFloat(&storage, dtype, 0, values[i]);
    rounded[i] = LoadAsDouble(&storage, dtype, 0);
  }
  return rounded;
}

}  // namespace

OutputGradient RandomOutputGradient(const Problem& p, std::mt19937_64& generator) {
  std::normal_distribution<float> normal;
  OutputGradient data(p.query_tokens * p.query_heads * p.v_width * SizeInBytes(p.dtype));
  for (int64_t i = 0; i < p.query_tokens * p.query_heads * p.v_width; ++i) {
    StoreFromDouble(data.data(), p.dtype, i, Drawn(p.dtype, normal(generator)));
  }
  return data;
}

Gradients EmptyGradients(const Problem& p) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  return {std::vector<double>(p.query_tokens * p.query_heads * p.qk_width, nan),
          std::vector<double>(p.key_tokens * p.kv_heads * p.qk_width, nan),
          std::vector<double>(p.key_tokens * p.kv_heads * p.v_width, nan),
          std::vector<double>(p.score.sink ? p.query_heads : 0, nan)};
}

Status RunRankBackward(Communicator& comm, const PlanSpec& spec, const Tensors& tensors,
                       const OutputGradient& output_gradient, Gradients& gradients, ExecutionStats* stats) {
  const Problem& p = spec.problem;
  const int rank = comm.rank();
  const int64_t query_rows = spec.query_layout.rows(rank);
  const int64_t key_rows = spec.key_layout.rows(rank);
  LocalInputs in(spec, rank, tensors);
  PoisonedTensor output(p.dtype, query_rows, p.query_heads, p.v_width);
  PoisonedTensor lse(AccumulatorType(p.dtype), query_rows, p.query_heads, 1);
  PoisonedTensor incoming(p.dtype, query_rows, p.query_heads, p.v_width);
  Gather(ConstTensorView::Dense(output_gradient.data(), p.dtype, p.query_tokens, p.query_heads, p.v_width),
         spec.query_layout, rank, incoming);
  PoisonedTensor query_gradient(p.dtype, query_rows, p.query_heads, p.qk_width);
  PoisonedTensor key_gradient(p.dtype, key_rows, p.kv_heads, p.qk_width);
  PoisonedTensor value_gradient(p.dtype, key_rows, p.kv_heads, p.v_width);
  std::vector<float> sink_gradient(p.score.sink ? p.query_heads : 0);

  AttentionOptions options;
  options.backward = true;
  const HeadVectors vectors{tensors.alibi_slopes, tensors.sinks};
  TESSERA_ASSIGN_OR_RETURN(auto attention, Attention::Create(comm, spec, options));
  CpuStream stream;
  TESSERA_RETURN_IF_ERROR(
      attention->Forward(in.query.view(), in.key.view(), in.value.view(), output.view(), lse.view(), vectors, stream));
  TESSERA_RETURN_IF_ERROR(
      attention->Backward({in.query.view(), in.key.view(), in.value.view(), output.view(), lse.view(), incoming.view(),
                           query_gradient.view(), key_gradient.view(), value_gradient.view(), sink_gradient},
                          vectors, stream));
  TESSERA_RETURN_IF_ERROR(stream.Synchronize());
  if (stats != nullptr) *stats = attention->stats();
  for (PoisonedTensor* tensor :
       {&in.query, &in.key, &in.value, &output, &lse, &incoming, &query_gradient, &key_gradient, &value_gradient}) {
    if (!tensor->MarginsIntact()) return absl::DataLossError("memory around a tensor was written");
  }
  Scatter(query_gradient.view(), spec.query_layout, rank, gradients.query);
  Scatter(key_gradient.view(), spec.key_layout, rank, gradients.key);
  Scatter(value_gradient.view(), spec.key_layout, rank, gradients.value);
  if (rank == 0) gradients.sink.assign(sink_gradient.begin(), sink_gradient.end());
  return absl::OkStatus();
}

GradientJudge::GradientJudge(const Problem& p, const Tensors& tensors, const OutputGradient& output_gradient,
                             DType weights) {
  RealGradients<double> exact(p, tensors, output_gradient, false, DType::kFloat64);
  RealGradients<float> plain(p, tensors, output_gradient, true, weights);
  const auto fill = [&](Yardstick& yardstick, std::vector<double>& values, const std::vector<double>& terms,
                        const std::vector<double>& squares, const std::vector<float>& plain_values, DType dtype) {
    const Error error = dtype == DType::kFloat64 ? Error{} : ErrorOf(Rounded(plain_values, dtype), values);
    double largest = 0;
    double largest_terms = 0;
    double largest_square = 0;
    for (double v : values) largest = std::max(largest, std::abs(v));
    for (double v : terms) largest_terms = std::max(largest_terms, v);
    for (double v : squares) largest_square = std::max(largest_square, v);
    double floor = RoundingOf(dtype) * largest + RoundingOf(AccumulatorType(dtype)) * largest_terms;
    // 16-bit factors: half a rounding of each, as often up as down. A plain run of few elements can be exact by luck.
    if (SizeInBytes(weights) == 2) floor += RoundingOf(weights) / 2 * std::sqrt(largest_square);
    yardstick = {std::move(values), error.rms, error.max, floor};
  };
  fill(query_, exact.query, exact.terms.query, exact.squares.query, plain.query, p.dtype);
  fill(key_, exact.key, exact.terms.key, exact.squares.key, plain.key, p.dtype);
  fill(value_, exact.value, exact.terms.value, exact.squares.value, plain.value, p.dtype);
  fill(sink_, exact.sink, exact.terms.sink, exact.squares.sink, plain.sink, DType::kFloat32);
}

std::string GradientJudge::Judge(const Gradients& gradients) const {
  std::string verdict;
  const auto judge = [&](const char* name, const Yardstick& yardstick, const std::vector<double>& values) {
    const Error error = ErrorOf(values, yardstick.exact);
    // Of few elements the mean is as much by luck as the largest.
    const double mean_floor = yardstick.floor / std::clamp(std::sqrt(static_cast<double>(values.size())), 1.0, 4.0);
    if (error.rms <= 2 * yardstick.rms + mean_floor && error.max <= 2 * yardstick.max + yardstick.floor) return;
    verdict += absl::StrFormat("%s gradient error rms %.3g max %.3g, plain rms %.3g max %.3g, floor %.3g; ", name,
                               error.rms, error.max, yardstick.rms, yardstick.max, yardstick.floor);
  };
  judge("query", query_, gradients.query);
  judge("key", key_, gradients.key);
  judge("value", value_, gradients.value);
  judge("sink", sink_, gradients.sink);
  return verdict;
}

}  // namespace tessera::testing
