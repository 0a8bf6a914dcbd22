#include "tests/support/distributed.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "kernels/reference/reference.h"

namespace tessera::testing {
namespace {

// A dense tensor inside a buffer of NaNs; 0xff bytes are NaN in every dtype.
class PoisonedTensor {
 public:
  PoisonedTensor(DType dtype, int64_t rows, int heads, int width)
      : buffer_(2 * kMargin + rows * heads * width * SizeInBytes(dtype), std::byte{0xff}),
        view_(TensorView::Dense(buffer_.data() + kMargin, dtype, rows, heads, width)) {}
  const TensorView& view() const { return view_; }
  void Set(int64_t row, const ConstTensorView& from, int64_t from_row) {
    for (int h = 0; h < from.heads; ++h)
      std::memcpy(view_.At(row, h), from.At(from_row, h), from.width * SizeInBytes(from.dtype));
  }
  bool MarginsIntact() const {
    const auto poison = [](std::byte b) { return b == std::byte{0xff}; };
    return std::all_of(buffer_.begin(), buffer_.begin() + kMargin, poison) &&
           std::all_of(buffer_.end() - kMargin, buffer_.end(), poison);
  }

 private:
  static constexpr int64_t kMargin = 256;
  std::vector<std::byte> buffer_;
  TensorView view_;
};

ScoreArgs ScoreOf(const Problem& p, const Tensors& tensors) {
  ScoreArgs score;
  score.scale = p.EffectiveScale();
  score.soft_cap = p.score.soft_cap;
  score.alibi_slopes = tensors.alibi_slopes;
  score.position_offset = p.key_tokens - p.query_tokens;
  return score;
}

struct Error {
  double rms = 0;
  double max = 0;
};
Error ErrorOf(const std::vector<float>& values, const std::vector<double>& exact) {
  Error error;
  for (size_t i = 0; i < values.size(); ++i) {
    const double e = std::abs(values[i] - exact[i]);
    if (std::isnan(e)) return {e, e};
    error.rms += e * e;
    error.max = std::max(error.max, e);
  }
  error.rms = values.empty() ? 0 : std::sqrt(error.rms / static_cast<double>(values.size()));
  return error;
}

double RoundingOf(DType dtype) {
  return dtype == DType::kFloat32 ? 0x1p-22 : dtype == DType::kFloat16 ? 0x1p-11 : 0x1p-8;
}

}  // namespace

Result EmptyResult(const Problem& p) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  return {std::vector<float>(p.query_tokens * p.query_heads * p.v_width, nan),
          std::vector<float>(p.query_tokens * p.query_heads, nan)};
}

Status RunRank(Communicator& comm, const PlanSpec& spec, const Tensors& tensors, const AttentionOptions& options,
               Result& result, ExecutionStats* stats) {
  const Problem& p = spec.problem;
  const int rank = comm.rank();
  const int64_t query_rows = spec.query_layout.rows(rank);
  const int64_t key_rows = spec.key_layout.rows(rank);
  PoisonedTensor query(p.dtype, query_rows, p.query_heads, p.qk_width);
  PoisonedTensor key(p.dtype, key_rows, p.kv_heads, p.qk_width);
  PoisonedTensor value(p.dtype, key_rows, p.kv_heads, p.v_width);
  PoisonedTensor output(p.dtype, query_rows, p.query_heads, p.v_width);
  PoisonedTensor lse(DType::kFloat32, query_rows, p.query_heads, 1);
  for (int64_t row = 0; row < query_rows; ++row) {
    query.Set(row, QueryView(p, tensors), static_cast<int64_t>(spec.query_layout.ToGlobal(rank, LocalToken{row})));
  }
  for (int64_t row = 0; row < key_rows; ++row) {
    const auto token = static_cast<int64_t>(spec.key_layout.ToGlobal(rank, LocalToken{row}));
    key.Set(row, KeyView(p, tensors), token);
    value.Set(row, ValueView(p, tensors), token);
  }

  TESSERA_ASSIGN_OR_RETURN(auto attention, Attention::Create(comm, spec, options));
  CpuStream stream;
  TESSERA_RETURN_IF_ERROR(attention->Forward(query.view(), key.view(), value.view(), output.view(), lse.view(),
                                             {tensors.alibi_slopes, tensors.sinks}, stream));
  TESSERA_RETURN_IF_ERROR(stream.Synchronize());
  if (stats != nullptr) *stats = attention->stats();
  for (const PoisonedTensor* tensor : {&query, &key, &value, &output, &lse}) {
    if (!tensor->MarginsIntact()) return absl::DataLossError("memory around a tensor was written");
  }
  for (int64_t row = 0; row < query_rows; ++row) {
    const auto token = static_cast<int64_t>(spec.query_layout.ToGlobal(rank, LocalToken{row}));
    for (int64_t i = 0; i < int64_t{p.query_heads} * p.v_width; ++i) {
      result.output[token * p.query_heads * p.v_width + i] =
          LoadAsFloat(output.view().data, p.dtype, row * p.query_heads * p.v_width + i);
    }
    for (int h = 0; h < p.query_heads; ++h) {
      result.lse[token * p.query_heads + h] = static_cast<const float*>(lse.view().data)[row * p.query_heads + h];
    }
  }
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
        for (int d = 0; d < p.v_width; ++d) {
          output[d] += weight * LoadAsFloat(tensors.value.data(), p.dtype, (k * p.kv_heads + kv) * p.v_width + d);
        }
      }
      result.lse[q * p.query_heads + h] = sum > 0 ? most + std::log(sum) : -std::numeric_limits<float>::infinity();
      for (int d = 0; d < p.v_width; ++d) {
        uint32_t storage = 0;
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
  const Error error = ErrorOf(result.output, exact->output);
  const Error plain = ErrorOf(Plain(p, tensors).output, exact->output);
  if (!(error.rms <= 2 * plain.rms + floor / 4) || !(error.max <= 2 * plain.max + floor)) {
    return absl::StrFormat("output error rms %.3g max %.3g, plain rms %.3g max %.3g, floor %.3g", error.rms, error.max,
                           plain.rms, plain.max, floor);
  }
  for (size_t i = 0; i < result.lse.size(); ++i) {
    const double e = exact->lse[i];
    const double got = result.lse[i];
    if (std::isinf(e) ? got != e : !(std::abs(got - e) <= 1e-5 * std::max(1.0, std::abs(e)))) {
      return absl::StrFormat("lse[%d] is %.9g, exactly %.9g", i, got, e);
    }
  }
  return "";
}

}  // namespace tessera::testing
