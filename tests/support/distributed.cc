#include "tests/support/distributed.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "kernels/reference/reference.h"
#include "tests/support/local_tensors.h"

namespace tessera::testing {
namespace {

ScoreArgs ScoreOf(const Problem& p, const Tensors& tensors) {
  ScoreArgs score;
  score.scale = p.EffectiveScale();
  score.soft_cap = p.score.soft_cap;
  score.alibi_slopes = tensors.alibi_slopes;
  score.position_offset = p.key_tokens - p.query_tokens;
  return score;
}

}  // namespace

Result EmptyResult(const Problem& p) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  return {std::vector<double>(p.query_tokens * p.query_heads * p.v_width, nan),
          std::vector<double>(p.query_tokens * p.query_heads, nan)};
}

Status RunRank(Communicator& comm, const PlanSpec& spec, const Tensors& tensors, const AttentionOptions& options,
               Result& result, ExecutionStats* stats) {
  const Problem& p = spec.problem;
  const int rank = comm.rank();
  const int64_t query_rows = spec.query_layout.rows(rank);
  LocalInputs in(spec, rank, tensors);
  PoisonedTensor output(p.dtype, query_rows, p.query_heads, p.v_width);
  PoisonedTensor lse(AccumulatorType(p.dtype), query_rows, p.query_heads, 1);

  TESSERA_ASSIGN_OR_RETURN(auto attention, Attention::Create(comm, spec, options));
  CpuStream stream;
  TESSERA_RETURN_IF_ERROR(attention->Forward(in.query.view(), in.key.view(), in.value.view(), output.view(), lse.view(),
                                             {tensors.alibi_slopes, tensors.sinks}, stream));
  TESSERA_RETURN_IF_ERROR(stream.Synchronize());
  if (stats != nullptr) *stats = attention->stats();
  for (PoisonedTensor* tensor : {&in.query, &in.key, &in.value, &output, &lse}) {
    if (!tensor->MarginsIntact()) return absl::DataLossError("memory around a tensor was written");
  }
  Scatter(output.view(), spec.query_layout, rank, result.output);
  Scatter(lse.view(), spec.query_layout, rank, result.lse);
  return absl::OkStatus();
}

Result Plain(const Problem& p, const Tensors& tensors) {
  Result result = EmptyResult(p);
  const float scale = p.EffectiveScale();
  std::vector<float> scores(p.key_tokens);
  for (int64_t q = 0; q < p.query_tokens; ++q) {
    for (int h = 0; h < p.query_heads; ++h) {
      const int kv = h / p.group();
      float most = -std::numeric_limits<float>::infinity();
      for (int64_t k = 0; k < p.key_tokens; ++k) {
        scores[k] = -std::numeric_limits<float>::infinity();
        const auto allows = [&](const Band& band) { return band.Allows(q, k); };
        if (std::none_of(p.mask.bands().begin(), p.mask.bands().end(), allows)) continue;
        float s = 0;
        for (int d = 0; d < p.qk_width; ++d) {
          s += LoadAsFloat(tensors.query.data(), p.dtype, (q * p.query_heads + h) * p.qk_width + d) *
               LoadAsFloat(tensors.key.data(), p.dtype, (k * p.kv_heads + kv) * p.qk_width + d);
        }
        s *= scale;
        if (p.score.soft_cap > 0) s = p.score.soft_cap * std::tanh(s / p.score.soft_cap);
        if (p.score.alibi) {
          s -= tensors.alibi_slopes[h] * static_cast<float>(std::abs(q + p.key_tokens - p.query_tokens - k));
        }
        scores[k] = s;
        most = std::max(most, s);
      }
      if (p.score.sink) most = std::max(most, tensors.sinks[h]);
      float sum = p.score.sink ? std::exp(tensors.sinks[h] - most) : 0.0f;
      std::vector<float> output(p.v_width, 0.0f);
      for (int64_t k = 0; k < p.key_tokens; ++k) {
        if (std::isinf(scores[k])) continue;
        const float weight = std::exp(scores[k] - most);
        sum += weight;
        const float factor = RoundWeight(CpuWeightType(p.dtype), weight);
        for (int d = 0; d < p.v_width; ++d) {
          output[d] += factor * LoadAsFloat(tensors.value.data(), p.dtype, (k * p.kv_heads + kv) * p.v_width + d);
        }
      }
      result.lse[q * p.query_heads + h] = sum > 0 ? most + std::log(sum) : -std::numeric_limits<float>::infinity();
      for (int d = 0; d < p.v_width; ++d) {
        uint64_t storage = 0;
        StoreFromFloat(&storage, p.dtype, 0, sum > 0 ? output[d] / sum : 0.0f);
        result.output[(q * p.query_heads + h) * p.v_width + d] = LoadAsFloat(&storage, p.dtype, 0);
      }
    }
  }
  return result;
}

std::string Judge(const Problem& p, const Tensors& tensors, const Result& result) {
  std::vector<int64_t> rows(p.query_tokens);
  std::iota(rows.begin(), rows.end(), int64_t{0});
  const auto exact = reference::Attention(QueryView(p, tensors), KeyView(p, tensors), ValueView(p, tensors),
                                          p.mask.bands(), ScoreOf(p, tensors), tensors.sinks, rows);
  if (!exact.ok()) return exact.status().ToString();
  double largest = 0;
  for (double value : exact->output) largest = std::max(largest, std::abs(value));
  const double floor = RoundingOf(p.dtype) * largest;
  const double rms_floor = RoundingOf(AccumulatorType(p.dtype)) * largest;
  const bool doubles = p.dtype == DType::kFloat64;
  const Error error = ErrorOf(result.output, exact->output);
  const Error plain = doubles ? Error{} : ErrorOf(Plain(p, tensors).output, exact->output);
  if (!(error.rms <= 2 * plain.rms + rms_floor) || !(error.max <= 2 * plain.max + floor)) {
    return absl::StrFormat("output error rms %.3g max %.3g, plain rms %.3g max %.3g, floor %.3g", error.rms, error.max,
                           plain.rms, plain.max, floor);
  }
  for (size_t i = 0; i < result.lse.size(); ++i) {
    const double e = exact->lse[i];
    const double got = result.lse[i];
    if (std::isinf(e) ? got != e : !(std::abs(got - e) <= (doubles ? 1e-12 : 1e-5) * std::max(1.0, std::abs(e)))) {
      return absl::StrFormat("lse[%d] is %.9g, exactly %.9g", i, got, e);
    }
  }
  return "";
}

}  // namespace tessera::testing
