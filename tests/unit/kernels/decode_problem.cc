#include "tests/unit/kernels/decode_problem.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "tests/unit/kernels/amx_software.h"

namespace tessera::testing {

DecodeProblem::DecodeProblem(const DecodeShape& shape, const std::vector<DecodeLengths>& lengths, Random& random)
    : shape_(shape), lengths_(lengths) {
  const auto element = static_cast<int64_t>(SizeInBytes(shape.dtype));
  // Rows and heads with gaps between them, heads outermost or innermost, keys and values in one page.
  const auto gap = [&] { return random.Integer(0, 3) * element; };
  const int64_t key_bytes = shape.qk_width * element + gap();
  const int64_t value_bytes = shape.latent ? 0 : shape.v_width * element + gap();
  layer_.dtype = shape.dtype;
  layer_.kv_heads = shape.kv_heads;
  layer_.qk_width = shape.qk_width;
  layer_.v_width = shape.v_width;
  layer_.page_tokens = shape.page_tokens;
  if (random.OneIn(2)) {
    layer_.key_head_stride = key_bytes;
    layer_.key_row_stride = shape.kv_heads * key_bytes + gap();
    layer_.value_head_stride = value_bytes;
    layer_.value_row_stride = shape.kv_heads * value_bytes;
  } else {
    layer_.key_row_stride = key_bytes;
    layer_.key_head_stride = shape.page_tokens * key_bytes + gap();
    layer_.value_row_stride = value_bytes;
    layer_.value_head_stride = shape.page_tokens * value_bytes;
  }
  const int64_t key_page = std::max(shape.page_tokens * layer_.key_row_stride, shape.kv_heads * layer_.key_head_stride);
  const int64_t value_page = shape.latent ? 0 : shape.page_tokens * shape.kv_heads * value_bytes;
  layer_.page_stride = key_page + value_page + gap();
  if (shape.latent) {
    layer_.value_row_stride = layer_.key_row_stride;
    layer_.value_head_stride = layer_.key_head_stride;
  }

  std::vector<int32_t> order;
  for (const DecodeLengths& sequence : lengths) {
    const int64_t pages = (sequence.cached + shape.page_tokens - 1) / shape.page_tokens;
    for (int64_t i = 0; i < pages; ++i) order.push_back(static_cast<int32_t>(order.size()));
  }
  const size_t spare = 3;
  const size_t pages = order.size() + spare;
  for (size_t i = order.size(); i > 1; --i)
    std::swap(order[i - 1], order[random.Integer(0, static_cast<int64_t>(i) - 1)]);
  // 0xff... is NaN in every dtype. The base is off by one element.
  memory_.assign(pages * layer_.page_stride + element, std::byte{0xff});
  layer_.key = memory_.data() + element;
  layer_.value = layer_.key + (shape.latent ? 0 : key_page);

  size_t next = 0;
  int64_t first_row = random.Integer(0, 2);
  sequences_.resize(lengths.size());
  pages_.resize(lengths.size());
  for (size_t s = 0; s < lengths.size(); ++s) {
    const int64_t count = (lengths[s].cached + shape.page_tokens - 1) / shape.page_tokens;
    pages_[s].assign(order.begin() + next, order.begin() + next + count);
    next += count;
    sequences_[s] = {first_row, pages_[s], lengths_[s].visible};
    first_row += static_cast<int64_t>(lengths_[s].visible.size()) + random.Integer(0, 1);
  }
  query_rows_ = first_row;
  scale = 1.0f / std::sqrt(static_cast<float>(shape.qk_width));
  query = Tensor(shape.dtype, query_rows_, shape.heads, shape.qk_width, &random);
  query.FillNormal(random, 1.0f);
  for (size_t s = 0; s < lengths.size(); ++s) {
    for (int64_t row = 0; row < lengths_[s].cached; ++row) {
      if (!Seen(s, row)) continue;  // stays NaN
      for (int j = 0; j < shape.kv_heads; ++j) {
        for (int i = 0; i < shape.qk_width; ++i) SetKey(s, row, j, i, random.Normal());
        for (int i = 0; !shape.latent && i < shape.v_width; ++i) SetValue(s, row, j, i, random.Normal());
      }
    }
  }
}

bool DecodeProblem::Seen(size_t sequence, int64_t row) const {
  const auto& visible = lengths_[sequence].visible;
  return std::any_of(visible.begin(), visible.end(), [row](Range r) { return row >= r.begin && row < r.end; });
}

std::byte* DecodeProblem::Row(size_t sequence, int64_t row, int kv_head, bool value) const {
  const int64_t page = pages_[sequence][row / shape_.page_tokens];
  const int64_t in_page = row % shape_.page_tokens;
  const int64_t offset = page * layer_.page_stride +
                         in_page * (value ? layer_.value_row_stride : layer_.key_row_stride) +
                         kv_head * (value ? layer_.value_head_stride : layer_.key_head_stride);
  return const_cast<std::byte*>((value ? layer_.value : layer_.key) + offset);
}

void DecodeProblem::SetKey(size_t sequence, int64_t row, int kv_head, int i, float value) {
  StoreFromFloat(Row(sequence, row, kv_head, false), shape_.dtype, i, value);
}
void DecodeProblem::SetValue(size_t sequence, int64_t row, int kv_head, int i, float value) {
  StoreFromFloat(Row(sequence, row, kv_head, true), shape_.dtype, i, value);
}

DecodeArgs DecodeProblem::Args(HeadRange heads, const Tensor& output, const Tensor& lse) const {
  DecodeArgs args;
  args.query = query.view();
  args.query.data = args.query.At(0, heads.begin);
  args.query.heads = heads.size();
  args.output = output.view();
  args.lse = lse.view();
  args.cache = layer_;
  args.sequences = sequences_;
  args.group = shape_.heads / shape_.kv_heads;
  args.first_query_head = heads.begin;
  args.first_kv_head = heads.begin / args.group;
  args.cache.kv_heads = (heads.end - 1) / args.group + 1 - args.first_kv_head;
  args.cache.key += args.first_kv_head * layer_.key_head_stride;
  args.cache.value += args.first_kv_head * layer_.value_head_stride;
  args.scale = scale;
  args.soft_cap = soft_cap;
  return args;
}

Problem DecodeProblem::Dense(size_t sequence) const {
  const DecodeSequence& rows = sequences_[sequence];
  const auto count = static_cast<int64_t>(rows.visible.size());
  Problem problem;
  problem.dtype = shape_.dtype;
  problem.query = Tensor(shape_.dtype, count, shape_.heads, shape_.qk_width);
  problem.key = Tensor(shape_.dtype, lengths_[sequence].cached, shape_.kv_heads, shape_.qk_width);
  problem.value = Tensor(shape_.dtype, lengths_[sequence].cached, shape_.kv_heads, shape_.v_width);
  problem.key.Fill(0.0f);
  problem.value.Fill(0.0f);
  for (int64_t r = 0; r < count; ++r) {
    if (!rows.visible[r].empty()) problem.bands.push_back({{r, r + 1}, rows.visible[r]});
    for (int h = 0; h < shape_.heads; ++h) {
      for (int i = 0; i < shape_.qk_width; ++i) problem.query.Set(r, h, i, query.Get(rows.first_query_row + r, h, i));
    }
  }
  for (int64_t row = 0; row < lengths_[sequence].cached; ++row) {
    if (!Seen(sequence, row)) continue;
    for (int j = 0; j < shape_.kv_heads; ++j) {
      const auto* key = Row(sequence, row, j, false);
      const auto* value = Row(sequence, row, j, true);
      for (int i = 0; i < shape_.qk_width; ++i) problem.key.Set(row, j, i, LoadAsFloat(key, shape_.dtype, i));
      for (int i = 0; i < shape_.v_width; ++i) problem.value.Set(row, j, i, LoadAsFloat(value, shape_.dtype, i));
    }
  }
  problem.score.scale = scale;
  problem.score.soft_cap = soft_cap;
  return problem;
}

Decoded::Decoded(int64_t rows, int heads, int width, Random* random)
    : output(DType::kFloat32, rows, heads, width, random), lse(DType::kFloat32, rows, heads, 1, random) {
  output.Fill(std::numeric_limits<float>::quiet_NaN());
  lse.Fill(std::numeric_limits<float>::quiet_NaN());
}

Result Decoded::Of(const DecodeSequence& sequence) const {
  Result result;
  const TensorView view = output.view();
  for (size_t r = 0; r < sequence.visible.size(); ++r) {
    const int64_t row = sequence.first_query_row + static_cast<int64_t>(r);
    for (int h = 0; h < view.heads; ++h) {
      for (int i = 0; i < view.width; ++i) result.output.push_back(output.Get(row, h, i));
      result.lse.push_back(lse.Get(row, h, 0));
    }
  }
  return result;
}

Decoded Decode(const DecodeKernel& kernel, const DecodeProblem& problem, int threads) {
  Random random("awkward outputs");
  Decoded decoded(problem.query_rows(), problem.shape().heads, problem.shape().v_width, &random);
  DecodeArgs args = problem.Args(decoded.output, decoded.lse);
  args.threads = threads;
  const Status status = kernel.Decode(args);
  EXPECT_TRUE(status.ok()) << std::string(kernel.name()) << ": " << status;
  return decoded;
}

namespace {

void Append(const Result& from, Result* to) {
  to->output.insert(to->output.end(), from.output.begin(), from.output.end());
  to->lse.insert(to->lse.end(), from.lse.begin(), from.lse.end());
}

}  // namespace

DecodeJudge::DecodeJudge(const DecodeProblem& problem) : problem_(problem) {
  for (size_t s = 0; s < problem.sequences(); ++s) {
    const Problem dense = problem.Dense(s);
    Append(Oracle(dense), &exact_);
    Append(Plain(dense), &plain_);
  }
}

void DecodeJudge::ExpectAccurate(const Decoded& decoded) const {
  Result result;
  for (size_t s = 0; s < problem_.sequences(); ++s) Append(decoded.Of(problem_.sequence(s)), &result);
  double largest = 1.0;
  for (double lse : exact_.lse) {
    if (std::isfinite(lse)) largest = std::max(largest, std::abs(lse));
  }
  // As in problem.cc; and one row may sit between two keys whose scores differ by less than their rounding, which moves
  // its weights by up to a quarter of that.
  const double one_row = std::sqrt(problem_.shape().v_width / std::max<double>(1.0, exact_.output.size()));
  const double floor = 0x1p-24 * Rms(exact_.output) * (4 + largest / 4 * one_row);
  EXPECT_LE(RmsError(result.output, exact_.output), 2 * RmsError(plain_.output, exact_.output) + floor)
      << "relative to " << Rms(exact_.output);
  ASSERT_EQ(result.lse.size(), exact_.lse.size());
  for (size_t i = 0; i < exact_.lse.size(); ++i) {
    if (std::isinf(exact_.lse[i])) {
      EXPECT_EQ(result.lse[i], exact_.lse[i]);
    } else {
      EXPECT_NEAR(result.lse[i], exact_.lse[i], 1e-5 * largest) << "row and head " << i;
    }
  }
}

DecodeProblem RandomDecodeProblem(Random& random) {
  static constexpr DType kDTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16};
  DecodeShape shape;
  shape.dtype = kDTypes[random.Integer(0, 2)];
  shape.kv_heads = static_cast<int>(random.Integer(1, 3));
  shape.heads = shape.kv_heads * static_cast<int>(random.OneIn(6) ? random.Integer(17, 40) : random.Integer(1, 9));
  shape.qk_width = static_cast<int>(random.Integer(1, random.OneIn(3) ? 200 : 70));
  shape.latent = random.OneIn(2);
  shape.v_width = static_cast<int>(random.Integer(1, shape.latent ? shape.qk_width : 130));
  shape.page_tokens = static_cast<int>(random.OneIn(3) ? random.Integer(1, 9) : 16 * random.Integer(1, 4));
  std::vector<DecodeLengths> lengths(random.Integer(1, 3));
  for (DecodeLengths& sequence : lengths) {
    sequence.cached = random.OneIn(8) ? 0 : random.Integer(1, random.OneIn(4) ? 900 : 200);
    const int64_t rows = random.Integer(0, 9);
    const bool causal = random.OneIn(2);
    for (int64_t r = 0; r < rows; ++r) {
      Range range{0, std::max<int64_t>(0, sequence.cached - rows + 1 + r)};
      if (!causal) range = {random.Integer(0, sequence.cached), random.Integer(0, sequence.cached)};
      sequence.visible.push_back(range.empty() ? Range{} : range);
    }
  }
  DecodeProblem problem(shape, lengths, random);
  if (random.OneIn(4)) problem.soft_cap = random.Uniform(1.0f, 50.0f);
  if (random.OneIn(8)) problem.scale *= 2500.0f;  // scores up to about 1e4
  if (random.OneIn(12)) problem.scale = -problem.scale;
  if (random.OneIn(30)) problem.scale = 0.0f;
  return problem;
}

std::string Describe(const DecodeProblem& problem) {
  const DecodeShape& shape = problem.shape();
  std::string text = absl::StrCat(std::string(Name(shape.dtype)), " H ", shape.heads, " Hk ", shape.kv_heads, " D ",
                                  shape.qk_width, " Dv ", shape.v_width, shape.latent ? " latent" : "", " pages of ",
                                  shape.page_tokens, " scale ", problem.scale, " cap ", problem.soft_cap, " rows");
  for (size_t s = 0; s < problem.sequences(); ++s) {
    absl::StrAppend(&text, " ", problem.sequence(s).visible.size(), "x", problem.sequence(s).pages.size());
  }
  return text;
}

std::vector<const DecodeKernel*> PresentDecoders(const DecodeTraits& traits) {
  std::vector<const DecodeKernel*> present;
  for (const DecodeKernel* kernel : DecodeKernels()) {
    if (kernel->WhyNot(traits).empty()) present.push_back(kernel);
  }
  return present;
}

std::vector<const DecodeKernel*> TestedDecoders(const DecodeTraits& traits) {
  std::vector<const DecodeKernel*> tested = PresentDecoders(traits);
  const DecodeKernel* const software = SoftwareAmxDecoder();
  if (software != nullptr && software->WhyNot(traits).empty()) tested.push_back(software);
  return tested;
}

}  // namespace tessera::testing
