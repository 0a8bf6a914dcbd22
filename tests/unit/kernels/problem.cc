#include "tests/unit/kernels/problem.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/reference/reference.h"
#include "tests/unit/kernels/amx_software.h"

namespace tessera::testing {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// About as many small widths as large ones.
int RandomWidth(Random& random) {
  static constexpr int kUsual[] = {16, 32, 64, 80, 96, 128, 192, 256};
  if (random.OneIn(4)) return kUsual[random.Integer(0, 7)];
  return static_cast<int>(random.Integer(1, int64_t{1} << random.Integer(0, 8)));
}

}  // namespace

uint64_t SeedOf(std::string_view name) {
  uint64_t hash = 14695981039346656037u;
  for (char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211u;
  return hash;
}

Tensor::Tensor(DType dtype, int64_t rows, int heads, int width, Random* random)
    : dtype_(dtype),
      rows_(rows),
      heads_(heads),
      width_(width),
      row_stride_(int64_t{heads} * width),
      head_stride_(width) {
  if (random != nullptr) {
    const int64_t padded = width + random->Integer(0, 5);
    const bool rows_outermost = random->OneIn(2);
    head_stride_ = rows_outermost ? padded : padded * rows + random->Integer(0, 9);
    row_stride_ = rows_outermost ? padded * heads + random->Integer(0, 9) : padded;
    offset_ = random->Integer(0, 8);
  }
  const int64_t elements = offset_ + rows * row_stride_ + heads * head_stride_ + width;
  bytes_.resize(static_cast<size_t>(elements) * SizeInBytes(dtype));
  for (int64_t i = 0; i < elements; ++i) StoreFromFloat(bytes_.data(), dtype, i, kNaN);
}

TensorView Tensor::view() const {
  TensorView v = TensorView::Dense(bytes_.data() + offset_ * static_cast<int64_t>(SizeInBytes(dtype_)), dtype_, rows_,
                                   heads_, width_);
  v.row_stride = row_stride_;
  v.head_stride = head_stride_;
  return v;
}

void Tensor::Fill(float value) {
  for (int64_t row = 0; row < rows_; ++row) {
    for (int head = 0; head < heads_; ++head) {
      for (int i = 0; i < width_; ++i) Set(row, head, i, value);
    }
  }
}

void Tensor::FillNormal(Random& random, float deviation) {
  for (int64_t row = 0; row < rows_; ++row) {
    for (int head = 0; head < heads_; ++head) {
      for (int i = 0; i < width_; ++i) Set(row, head, i, deviation * random.Normal());
    }
  }
}

std::string Problem::Describe() const {
  return absl::StrCat(std::string(Name(dtype)), " Sq ", query_tokens(), " Sk ", key_tokens(), " H ", heads(), " Hk ",
                      key.view().heads, " D ", query.view().width, " Dv ", v_width(), " bands ", bands.size(),
                      " scale ", score.scale, " cap ", score.soft_cap, " slopes ", slopes.size(), " sinks ",
                      sinks.size());
}

Problem MakeProblem(const Shape& shape, Random& random) {
  Problem problem;
  problem.dtype = shape.dtype;
  problem.query = Tensor(shape.dtype, shape.query_tokens, shape.heads, shape.qk_width, &random);
  problem.key = Tensor(shape.dtype, shape.key_tokens, shape.kv_heads, shape.qk_width, &random);
  problem.value = Tensor(shape.dtype, shape.key_tokens, shape.kv_heads, shape.v_width, &random);
  for (Tensor* tensor : {&problem.query, &problem.key, &problem.value}) tensor->FillNormal(random, 1.0f);
  problem.score.scale = 1.0f / std::sqrt(static_cast<float>(shape.qk_width));
  problem.score.position_offset = shape.key_tokens - shape.query_tokens;
  return problem;
}

std::vector<Band> RandomBands(int64_t query_tokens, int64_t key_tokens, Random& random) {
  const Range queries{0, query_tokens}, keys{0, key_tokens};
  const int64_t offset = key_tokens - query_tokens;
  std::vector<Band> bands;
  switch (random.Integer(0, 4)) {
    case 0:
      bands.push_back({queries, keys});
      break;
    case 1:
      bands.push_back({queries, keys, -kUnboundedDiagonal, offset});
      break;
    case 2:
      bands.push_back({queries, keys, offset - random.Integer(0, 40), offset + random.Integer(-3, 10)});
      break;
    case 3:  // documents, some of them empty
      for (int64_t begin = 0; begin < query_tokens;) {
        const int64_t end = std::min(query_tokens, begin + random.Integer(0, 12));
        bands.push_back({{begin, end}, {begin, std::min(key_tokens, end)}, -kUnboundedDiagonal, 0});
        begin = end;
      }
      break;
    case 4:  // a grid of blocks, each with its own diagonals
      for (int64_t q = 0; q < query_tokens; q += 16) {
        for (int64_t k = 0; k < key_tokens; k += 48) {
          if (random.OneIn(3)) continue;
          Band band{{q, std::min(q + 16, query_tokens)}, {k, std::min(k + 48, key_tokens)}};
          if (random.OneIn(2)) band.min_offset = k - q + random.Integer(-20, 20);
          if (random.OneIn(2)) band.max_offset = k - q + random.Integer(-20, 60);
          bands.push_back(band);
        }
      }
      break;
  }
  return bands;
}

Problem RandomProblem(Random& random, std::optional<DType> dtype) {
  static constexpr DType kDTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16};
  Shape shape;
  shape.dtype = kDTypes[random.Integer(0, 2)];
  if (dtype) shape.dtype = *dtype;
  shape.query_tokens = random.Integer(1, random.OneIn(4) ? 70 : 20);
  shape.key_tokens = random.OneIn(20) ? 0 : random.Integer(1, 220);
  shape.kv_heads = static_cast<int>(random.Integer(1, 2));
  shape.heads = shape.kv_heads * static_cast<int>(random.Integer(1, 3));
  shape.qk_width = RandomWidth(random);
  shape.v_width = random.OneIn(2) ? shape.qk_width : RandomWidth(random);
  Problem problem = MakeProblem(shape, random);
  problem.bands = RandomBands(shape.query_tokens, shape.key_tokens, random);
  if (random.OneIn(4)) problem.score.soft_cap = random.Uniform(1.0f, 50.0f);
  if (random.OneIn(4)) {
    for (int head = 0; head < shape.heads; ++head) problem.slopes.push_back(random.Uniform(0.0f, 1.0f));
  }
  if (random.OneIn(4)) {
    for (int head = 0; head < shape.heads; ++head) problem.sinks.push_back(3.0f * random.Normal());
  }
  if (random.OneIn(8)) problem.score.scale *= 2500.0f;  // scores up to about 1e4
  if (random.OneIn(12)) problem.score.scale = -problem.score.scale;
  if (random.OneIn(30)) problem.score.scale = 0.0f;
  return problem;
}

Result Oracle(const Problem& problem) {
  std::vector<int64_t> rows;
  for (int64_t row = 0; row < problem.query_tokens(); ++row) rows.push_back(row);
  ScoreArgs score = problem.score;
  score.alibi_slopes = problem.slopes;
  const auto result = reference::Attention(problem.query.view(), problem.key.view(), problem.value.view(),
                                           problem.bands, score, problem.sinks, rows);
  EXPECT_TRUE(result.ok()) << result.status();
  return result.ok() ? Result{result->output, result->lse} : Result{};
}

Result Plain(const Problem& problem, bool bf16_weights) {
  Result result;
  std::vector<float> scores, output;
  std::vector<int64_t> keys;
  for (int64_t q = 0; q < problem.query_tokens(); ++q) {
    keys.clear();
    for (int64_t k = 0; k < problem.key_tokens(); ++k) {
      for (const Band& band : problem.bands) {
        if (band.Allows(q, k)) keys.push_back(k);
      }
    }
    for (int head = 0; head < problem.heads(); ++head) {
      const int kv_head = head / problem.group();
      scores.clear();
      float max = kMinusInfinity;
      for (int64_t k : keys) {
        float dot = 0;
        for (int i = 0; i < problem.query.view().width; ++i) {
          dot += problem.query.Get(q, head, i) * problem.key.Get(k, kv_head, i);
        }
        float s = dot * problem.score.scale;
        if (problem.score.soft_cap > 0) s = problem.score.soft_cap * std::tanh(s / problem.score.soft_cap);
        if (!problem.slopes.empty()) {
          s -= problem.slopes[head] * static_cast<float>(std::abs(q + problem.score.position_offset - k));
        }
        scores.push_back(s);
        max = std::max(max, s);
      }
      const float sink = problem.sinks.empty() ? kMinusInfinity : problem.sinks[head];
      max = std::max(max, sink);
      float sum = sink == kMinusInfinity ? 0.0f : std::exp(sink - max);
      output.assign(problem.v_width(), 0.0f);
      for (size_t j = 0; j < keys.size(); ++j) {
        const float p = std::exp(scores[j] - max);
        sum += p;
        const float weight = bf16_weights ? FloatFromBFloat16(BFloat16FromFloat(p)) : p;
        for (int i = 0; i < problem.v_width(); ++i) output[i] += weight * problem.value.Get(keys[j], kv_head, i);
      }
      for (float o : output) {
        std::byte rounded[4];
        StoreFromFloat(rounded, problem.dtype, 0, sum == 0.0f ? 0.0f : o / sum);
        result.output.push_back(LoadAsFloat(rounded, problem.dtype, 0));
      }
      result.lse.push_back(max + std::log(sum));
    }
  }
  return result;
}

Partials::Partials(int64_t rows, int heads, int width)
    : output(DType::kFloat32, rows, heads, width), lse(DType::kFloat32, rows, heads, 1) {
  output.Fill(0.0f);
  lse.Fill(kMinusInfinity);
}

AttendArgs ArgsOf(const Problem& problem, const Partials& partials, std::span<const Tile> tiles) {
  AttendArgs args;
  args.query = problem.query.view();
  args.key = problem.key.view();
  args.value = problem.value.view();
  args.output = partials.output.view();
  args.lse = partials.lse.view();
  args.tiles = tiles;
  args.bands = problem.bands;
  args.group = problem.group();
  args.score = problem.score;
  args.score.alibi_slopes = problem.slopes;
  return args;
}

Tile WholeTile(const Problem& problem) {
  return {0, {0, problem.query_tokens(), 1}, 0, {0, problem.key_tokens(), 1}};
}

Result Finish(const Problem& problem, const Partials& partials) {
  Tensor result(problem.dtype, problem.query_tokens(), problem.heads(), problem.v_width());
  Tensor lse(DType::kFloat32, problem.query_tokens(), problem.heads(), 1);
  FinishPartials(partials.output.view(), partials.lse.view(), problem.sinks, result.view(), lse.view(), 1);
  Result final;
  for (int64_t row = 0; row < problem.query_tokens(); ++row) {
    for (int head = 0; head < problem.heads(); ++head) {
      for (int i = 0; i < problem.v_width(); ++i) final.output.push_back(result.Get(row, head, i));
      final.lse.push_back(lse.Get(row, head, 0));
    }
  }
  return final;
}

Result Compute(const AttentionKernel& kernel, const Problem& problem) {
  const Partials partials(problem.query_tokens(), problem.heads(), problem.v_width());
  const Tile tile = WholeTile(problem);
  const Status status = kernel.Attend(ArgsOf(problem, partials, {&tile, 1}));
  EXPECT_TRUE(status.ok()) << status;
  return Finish(problem, partials);
}

double Rms(const std::vector<double>& values) {
  double sum = 0;
  for (double v : values) sum += v * v;
  return values.empty() ? 0.0 : std::sqrt(sum / static_cast<double>(values.size()));
}

double RmsError(const std::vector<double>& values, const std::vector<double>& exact) {
  EXPECT_EQ(values.size(), exact.size());
  if (values.size() != exact.size()) return std::numeric_limits<double>::infinity();
  std::vector<double> difference(values.size());
  for (size_t i = 0; i < values.size(); ++i) difference[i] = values[i] - exact[i];
  return Rms(difference);
}

void ExpectAccurate(const Problem& problem, const Result& result, bool bf16_weights) {
  const Result exact = Oracle(problem);
  const Result plain = Plain(problem, bf16_weights);
  const double size = Rms(exact.output);
  // Where the plain computation happens to be exact (one key, equal values) an online softmax still divides a product
  // by a denominator and rounds an exponential: 4 units of fp32 rounding cover that.
  const double floor = 4 * 0x1p-24 * size;
  EXPECT_LE(RmsError(result.output, exact.output), 2 * RmsError(plain.output, exact.output) + floor)
      << "relative to " << size;
  ASSERT_EQ(result.lse.size(), exact.lse.size());
  // An LSE near 0 may be the sum of products near 1e4 that cancel, hence relative to the problem's largest.
  double largest = 1.0;
  for (double lse : exact.lse) {
    if (std::isfinite(lse)) largest = std::max(largest, std::abs(lse));
  }
  for (size_t i = 0; i < exact.lse.size(); ++i) {
    if (std::isinf(exact.lse[i])) {
      EXPECT_EQ(result.lse[i], exact.lse[i]);
    } else {
      EXPECT_NEAR(result.lse[i], exact.lse[i], 1e-5 * largest) << "row and head " << i;
    }
  }
}

bool Serves(const AttentionKernel& kernel, DType dtype) {
  return kernel.WhyNot({dtype, 64, 64}).empty();
}

std::vector<const AttentionKernel*> PresentKernels() {
  std::vector<const AttentionKernel*> present;
  for (const AttentionKernel* kernel : AttentionKernels()) {
    if (Serves(*kernel, DType::kBFloat16)) present.push_back(kernel);
  }
  return present;
}

std::vector<const AttentionKernel*> TestedKernels() {
  std::vector<const AttentionKernel*> tested = PresentKernels();
  if (const AttentionKernel* software = SoftwareAmxKernel(); software != nullptr) tested.push_back(software);
  return tested;
}

}  // namespace tessera::testing
