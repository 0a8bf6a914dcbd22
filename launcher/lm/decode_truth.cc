#include <cmath>
#include <cstring>

#include "launcher/host.h"
#include "launcher/lm/decode_subject.h"

namespace tessera::launcher {
namespace {

// y = W x in fp64, rows [first, first + count) of W.
std::vector<double> Product(const MatrixView& weight, const double* x, int64_t first, int64_t count) {
  std::vector<double> y(count);
  for (int64_t r = 0; r < count; ++r) {
    double sum = 0;
    for (int64_t c = 0; c < weight.columns; ++c) sum += x[c] * weight.At(first + r, c);
    y[r] = sum;
  }
  return y;
}
std::vector<double> Product(const MatrixView& weight, const std::vector<double>& x) {
  return Product(weight, x.data(), 0, weight.rows);
}

void Normalise(double* row, int64_t width, float epsilon) {
  double squares = 0;
  for (int64_t i = 0; i < width; ++i) squares += row[i] * row[i];
  const double factor = 1 / std::sqrt(squares / static_cast<double>(width) + epsilon);
  for (int64_t i = 0; i < width; ++i) row[i] *= factor;
}

// Half-split RoPE without scaling, the only kind these shapes have.
void Rotate(double* row, int width, double theta, int64_t position) {
  const int half = width / 2;
  for (int i = 0; i < half; ++i) {
    const double angle = static_cast<double>(position) * std::pow(theta, -2.0 * i / width);
    const double a = row[i], b = row[i + half];
    row[i] = a * std::cos(angle) - b * std::sin(angle);
    row[i + half] = b * std::cos(angle) + a * std::sin(angle);
  }
}

// Attention of fp32 queries [query_tokens, heads, qk] over one dense fp32 page of rows by the fp64 reference kernel.
// The last query_tokens rows are the queries' own.
Status Attend(const DecodeLoad& load, const std::vector<float>& query, const CacheLayer& cache, int heads, float scale,
              std::vector<float>& output) {
  const int64_t tokens = load.context_tokens + load.query_tokens;
  TESSERA_ASSIGN_OR_RETURN(
      const DecodeKernel* kernel,
      FindDecodeKernel({DType::kFloat32, cache.qk_width, cache.v_width, cache.key == cache.value}, "reference"));
  const int32_t page = 0;
  std::vector<Range> visible;
  for (int64_t t = 1; t <= load.query_tokens; ++t) visible.push_back({0, load.context_tokens + t});
  const DecodeSequence sequence{0, {&page, 1}, visible};
  output.resize(load.query_tokens * heads * cache.v_width);
  std::vector<float> lse(load.query_tokens * heads);
  DecodeArgs args;
  args.query =
      TensorView::Dense(const_cast<float*>(query.data()), DType::kFloat32, load.query_tokens, heads, cache.qk_width);
  args.output = TensorView::Dense(output.data(), DType::kFloat32, load.query_tokens, heads, cache.v_width);
  args.lse = TensorView::Dense(lse.data(), DType::kFloat32, load.query_tokens, heads, 1);
  args.cache = cache;
  args.cache.page_tokens = static_cast<int>(tokens);
  args.sequences = {&sequence, 1};
  args.group = heads / cache.kv_heads;
  args.scale = scale;
  args.threads = UsableCores();
  return kernel->Decode(args);
}

// The stored context as fp32: rounded to the cache's dtype, as every method sees it.
std::vector<float> ContextRows(const DecodeLoad& load, bool value, int heads, int width, int64_t tokens) {
  std::vector<std::byte> stored(tokens * heads * width * SizeInBytes(load.dtype));
  FillContext(load, 0, 0, value, TensorView::Dense(stored.data(), load.dtype, tokens, heads, width));
  std::vector<float> rows(tokens * heads * width);
  for (size_t i = 0; i < rows.size(); ++i) rows[i] = LoadAsFloat(stored.data(), load.dtype, i);
  return rows;
}

StatusOr<std::vector<double>> MlaTruth(const DecodeLoad& load, const MlaWeights& weights) {
  const MlaShape& shape = load.shape.mla();
  const int64_t width = shape.cache_width();
  const int64_t qk = shape.qk_width();
  const double theta = shape.rope_options.theta;
  std::vector<float> cache = ContextRows(load, false, 1, static_cast<int>(width), load.context_tokens);
  std::vector<float> absorbed;
  const std::vector<float> hidden = StepInput(load, 0);
  for (int64_t t = 0; t < load.query_tokens; ++t) {
    const std::vector<double> x(hidden.begin() + t * shape.hidden, hidden.begin() + (t + 1) * shape.hidden);
    const int64_t position = load.context_tokens + t;
    std::vector<double> kv = Product(weights.kv_down, x);
    Normalise(kv.data(), shape.latent, shape.norm_epsilon);
    Rotate(kv.data() + shape.latent, shape.rope, theta, position);
    cache.insert(cache.end(), kv.begin(), kv.end());
    std::vector<double> query;
    if (shape.query_rank > 0) {
      std::vector<double> low = Product(weights.query_down, x);
      Normalise(low.data(), shape.query_rank, shape.norm_epsilon);
      query = Product(weights.query_up, low);
    } else {
      query = Product(weights.query, x);
    }
    for (int head = 0; head < shape.heads; ++head) {
      double* q = query.data() + head * qk;
      Rotate(q + shape.nope, shape.rope, theta, position);
      std::vector<double> latent(shape.latent, 0.0);
      const int64_t first = head * int64_t{shape.nope + shape.value};
      for (int i = 0; i < shape.nope; ++i) {
        for (int c = 0; c < shape.latent; ++c) latent[c] += q[i] * weights.kv_up.At(first + i, c);
      }
      absorbed.insert(absorbed.end(), latent.begin(), latent.end());
      absorbed.insert(absorbed.end(), q + shape.nope, q + qk);
    }
  }
  CacheLayer layer;
  layer.key = layer.value = reinterpret_cast<const std::byte*>(cache.data());
  layer.dtype = DType::kFloat32;
  layer.qk_width = static_cast<int>(width);
  layer.v_width = shape.latent;
  layer.key_row_stride = layer.value_row_stride = width * 4;
  layer.key_head_stride = layer.value_head_stride = width * 4;
  std::vector<float> latent_output;
  TESSERA_RETURN_IF_ERROR(Attend(load, absorbed, layer, shape.heads, shape.Scale(), latent_output));
  std::vector<double> result;
  for (int64_t t = 0; t < load.query_tokens; ++t) {
    std::vector<double> value;
    for (int head = 0; head < shape.heads; ++head) {
      const float* y = latent_output.data() + (t * shape.heads + head) * shape.latent;
      const std::vector<double> y64(y, y + shape.latent);
      const auto rows =
          Product(weights.kv_up, y64.data(), head * int64_t{shape.nope + shape.value} + shape.nope, shape.value);
      value.insert(value.end(), rows.begin(), rows.end());
    }
    const std::vector<double> out = Product(weights.output, value);
    result.insert(result.end(), out.begin(), out.end());
  }
  return result;
}

StatusOr<std::vector<double>> GqaTruth(const DecodeLoad& load) {
  const GqaShape& shape = load.shape.gqa();
  const int64_t tokens = load.context_tokens + load.query_tokens;
  const std::vector<float> keys = ContextRows(load, false, shape.kv_heads, shape.width, tokens);
  const std::vector<float> values = ContextRows(load, true, shape.kv_heads, shape.width, tokens);
  std::vector<float> query = StepInput(load, 0);
  // Queries are stored in the cache's dtype by definition of the problem.
  for (float& q : query) {
    std::byte stored[4];
    StoreFromFloat(stored, load.dtype, 0, q);
    q = LoadAsFloat(stored, load.dtype, 0);
  }
  CacheLayer layer;
  layer.key = reinterpret_cast<const std::byte*>(keys.data());
  layer.value = reinterpret_cast<const std::byte*>(values.data());
  layer.dtype = DType::kFloat32;
  layer.kv_heads = shape.kv_heads;
  layer.qk_width = layer.v_width = shape.width;
  layer.key_head_stride = layer.value_head_stride = shape.width * 4;
  layer.key_row_stride = layer.value_row_stride = int64_t{shape.kv_heads} * shape.width * 4;
  std::vector<float> output;
  TESSERA_RETURN_IF_ERROR(
      Attend(load, query, layer, shape.heads, 1.0f / std::sqrt(static_cast<float>(shape.width)), output));
  return std::vector<double>(output.begin(), output.end());
}

}  // namespace

StatusOr<std::vector<double>> DecodeTruth(const DecodeLoad& load, const RandomMlaWeights* weights) {
  return load.shape.is_mla() ? MlaTruth(load, weights->view()) : GqaTruth(load);
}

}  // namespace tessera::launcher
