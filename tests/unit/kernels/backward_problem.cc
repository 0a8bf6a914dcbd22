#include "tests/unit/kernels/backward_problem.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/reference/reference.h"

namespace tessera::testing {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

std::vector<double> Rounded(const Tensor& tensor, DType dtype) {
  std::vector<double> values;
  const TensorView view = tensor.view();
  for (int64_t row = 0; row < view.rows; ++row) {
    for (int head = 0; head < view.heads; ++head) {
      for (int i = 0; i < view.width; ++i) {
        std::byte rounded[4];
        StoreFromFloat(rounded, dtype, 0, tensor.Get(row, head, i));
        values.push_back(LoadAsFloat(rounded, dtype, 0));
      }
    }
  }
  return values;
}

// Gradients in fp32 arithmetic, pair by pair, from the same saved LSE and delta. `size` gets the sum of the squared
// terms.
struct PlainBackward {
  PlainBackward(const BackwardProblem& backward, bool bf16_weights)
      : sums(backward.problem), size(backward.problem), bf16_weights(bf16_weights) {
    const Problem& problem = backward.problem;
    for (int64_t q = 0; q < problem.query_tokens(); ++q) {
      for (int64_t k = 0; k < problem.key_tokens(); ++k) {
        for (const Band& band : problem.bands) {
          if (!band.Allows(q, k)) continue;
          for (int head = 0; head < problem.heads(); ++head) AddPair(backward, q, k, head);
        }
      }
    }
  }

  void AddPair(const BackwardProblem& backward, int64_t q, int64_t k, int head) {
    const Problem& problem = backward.problem;
    const int kv_head = head / problem.group(), width = problem.query.view().width;
    const float lse = backward.lse.Get(q, head, 0), delta = backward.delta.Get(q, head, 0);
    if (lse == kMinusInfinity) return;
    float dot = 0, dp = 0, dp_squares = 0;
    for (int i = 0; i < width; ++i) dot += problem.query.Get(q, head, i) * problem.key.Get(k, kv_head, i);
    for (int i = 0; i < problem.v_width(); ++i) {
      const float term = backward.output_gradient.Get(q, head, i) * problem.value.Get(k, kv_head, i);
      dp += term;
      dp_squares += term * term;
    }
    const float cap = problem.score.soft_cap;
    float s = dot * problem.score.scale, slope = 1;
    if (cap > 0) {
      const float t = std::tanh(s / cap);
      s = cap * t;
      slope = 1 - t * t;
    }
    if (!problem.slopes.empty()) {
      s -= problem.slopes[head] * static_cast<float>(std::abs(q + problem.score.position_offset - k));
    }
    const auto rounded = [&](float x) { return bf16_weights ? FloatFromBFloat16(BFloat16FromFloat(x)) : x; };
    const float p = rounded(std::exp(s - lse)), weight = std::exp(s - lse) * problem.score.scale * slope;
    const float ds = rounded(weight * (dp - delta)), ds_size = weight * (std::sqrt(dp_squares) + std::abs(delta));
    const auto add = [](Tensor& to, int64_t row, int at, int i, float x) {
      to.Set(row, at, i, to.Get(row, at, i) + x);
    };
    for (int i = 0; i < width; ++i) {
      const float query = problem.query.Get(q, head, i), key = problem.key.Get(k, kv_head, i);
      add(sums.query, q, head, i, ds * key);
      add(sums.key, k, kv_head, i, ds * query);
      add(size.query, q, head, i, ds_size * key * ds_size * key);
      add(size.key, k, kv_head, i, ds_size * query * ds_size * query);
    }
    for (int i = 0; i < problem.v_width(); ++i) {
      const float gradient = backward.output_gradient.Get(q, head, i);
      add(sums.value, k, kv_head, i, p * gradient);
      add(size.value, k, kv_head, i, p * gradient * p * gradient);
    }
  }

  GradientSums sums, size;
  const bool bf16_weights;
};

// dsink in fp32 arithmetic, and the root of the sum of its squared terms.
void PlainSink(const BackwardProblem& backward, std::vector<double>* sink, std::vector<double>* size) {
  const Problem& problem = backward.problem;
  for (int head = 0; head < problem.heads() && !problem.sinks.empty(); ++head) {
    float sum = 0, squares = 0;
    for (int64_t q = 0; q < problem.query_tokens(); ++q) {
      const float p = std::exp(problem.sinks[head] - backward.lse.Get(q, head, 0));
      float delta = 0, delta_squares = 0;
      for (int i = 0; i < problem.v_width(); ++i) {
        const float term = backward.output.Get(q, head, i) * backward.output_gradient.Get(q, head, i);
        delta += term;
        delta_squares += term * term;
      }
      sum -= p * delta;
      squares += p * p * delta_squares;
    }
    sink->push_back(sum);
    size->push_back(std::sqrt(squares));
  }
}

std::vector<double> Roots(std::vector<double> values) {
  for (double& v : values) v = std::sqrt(v);
  return values;
}

}  // namespace

BackwardProblem::BackwardProblem(const AttentionKernel& forward, const Problem& whole, Random& random)
    : problem(whole),
      output_gradient(whole.dtype, whole.query_tokens(), whole.heads(), whole.v_width(), &random),
      output(whole.dtype, whole.query_tokens(), whole.heads(), whole.v_width(), &random),
      lse(DType::kFloat32, whole.query_tokens(), whole.heads(), 1, &random),
      delta(DType::kFloat32, whole.query_tokens(), whole.heads(), 1, &random) {
  output_gradient.FillNormal(random, 1.0f);
  const Partials partials(problem.query_tokens(), problem.heads(), problem.v_width());
  const Tile tile = WholeTile(problem);
  const Status status = forward.Attend(ArgsOf(problem, partials, {&tile, 1}));
  EXPECT_TRUE(status.ok()) << status;
  FinishPartials(partials.output.view(), partials.lse.view(), problem.sinks, output.view(), lse.view(), 1);
  ComputeDelta(output.view(), output_gradient.view(), delta.view(), 1);
}

GradientSums::GradientSums(const Problem& problem)
    : query(DType::kFloat32, problem.query_tokens(), problem.heads(), problem.query.view().width),
      key(DType::kFloat32, problem.key_tokens(), problem.key.view().heads, problem.key.view().width),
      value(DType::kFloat32, problem.key_tokens(), problem.key.view().heads, problem.v_width()) {
  for (Tensor* tensor : {&query, &key, &value}) tensor->Fill(0.0f);
}

AttendBackwardArgs BackwardArgsOf(const BackwardProblem& backward, const GradientSums& sums,
                                  std::span<const Tile> tiles) {
  const Problem& problem = backward.problem;
  AttendBackwardArgs args;
  args.query = problem.query.view();
  args.key = problem.key.view();
  args.value = problem.value.view();
  args.output_gradient = backward.output_gradient.view();
  args.lse = backward.lse.view();
  args.delta = backward.delta.view();
  args.query_gradient = sums.query.view();
  args.key_gradient = sums.key.view();
  args.value_gradient = sums.value.view();
  args.tiles = tiles;
  args.bands = problem.bands;
  args.group = problem.group();
  args.score = problem.score;
  args.score.alibi_slopes = problem.slopes;
  return args;
}

GradientResult RoundGradients(const BackwardProblem& backward, const GradientSums& sums) {
  const Problem& problem = backward.problem;
  std::vector<float> sink(problem.sinks.size());
  AddSinkGradient(backward.lse.view(), backward.delta.view(), problem.sinks, sink);
  return {Rounded(sums.query, problem.dtype),
          Rounded(sums.key, problem.dtype),
          Rounded(sums.value, problem.dtype),
          {sink.begin(), sink.end()}};
}

GradientJudge::GradientJudge(const BackwardProblem& backward, bool bf16_weights) {
  const Problem& problem = backward.problem;
  ScoreArgs score = problem.score;
  score.alibi_slopes = problem.slopes;
  const auto exact = reference::AttentionBackward(problem.query.view(), problem.key.view(), problem.value.view(),
                                                  backward.output_gradient.view(), problem.bands, score, problem.sinks);
  EXPECT_TRUE(exact.ok()) << exact.status();
  if (!exact.ok()) return;
  exact_ = {exact->query, exact->key, exact->value, exact->sink};
  const PlainBackward plain(backward, bf16_weights);
  plain_ = RoundGradients(backward, plain.sums);
  const DType fp32 = DType::kFloat32;
  size_ = {Roots(Rounded(plain.size.query, fp32)),
           Roots(Rounded(plain.size.key, fp32)),
           Roots(Rounded(plain.size.value, fp32)),
           {}};
  plain_.sink.clear();
  PlainSink(backward, &plain_.sink, &size_.sink);
  const std::vector<double> given = Rounded(backward.lse, fp32);
  std::vector<double> errors;
  for (size_t i = 0; i < given.size(); ++i) {
    if (!std::isfinite(given[i])) continue;
    largest_lse_ = std::max(largest_lse_, std::abs(given[i]));
    errors.push_back(given[i] - exact->lse[i]);
  }
  if (!errors.empty()) lse_error_ = Rms(errors);
}

void GradientJudge::Expect(const GradientResult& result) const {
  const auto expect = [&](const char* what, std::vector<double> GradientResult::*gradient) {
    // 4 units of fp32 rounding, as the forward tests allow, of what was added up. P = exp(s - LSE) is known no better
    // than the LSE that the kernel is given, which is off by some units where scores are sums of many, and the score,
    // which is rounded too. A plain program whose scores are rounded as those in the LSE were can hide that.
    const double floor = ((4 + largest_lse_) * 0x1p-24 + lse_error_) * Rms(size_.*gradient);
    EXPECT_LE(RmsError(result.*gradient, exact_.*gradient), 2 * RmsError(plain_.*gradient, exact_.*gradient) + floor)
        << what << " relative to " << Rms(exact_.*gradient);
  };
  expect("dq", &GradientResult::query);
  expect("dk", &GradientResult::key);
  expect("dv", &GradientResult::value);
  expect("dsink", &GradientResult::sink);
}

}  // namespace tessera::testing
