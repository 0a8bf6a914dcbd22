#include "tests/support/problems.h"

#include <algorithm>

namespace tessera::testing {
namespace {

int64_t Pick(std::mt19937_64& generator, int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(generator);
}

// Boundaries of random documents, some of them empty.
std::vector<int64_t> RandomBoundaries(int64_t tokens, std::mt19937_64& generator) {
  std::vector<int64_t> boundaries = {0, tokens};
  for (int64_t i = Pick(generator, 0, 6); i > 0; --i) {
    const int64_t cut = Pick(generator, 0, tokens);
    boundaries.push_back(cut);
    if (Pick(generator, 0, 3) == 0) boundaries.push_back(cut);
  }
  std::sort(boundaries.begin(), boundaries.end());
  return boundaries;
}

// A staircase of slices of all four types: disjoint query ranges against any keys, so that pairs never repeat.
Mask RandomSlices(const Problem& p, std::mt19937_64& generator) {
  std::vector<MaskSlice> slices;
  int64_t query = 0;
  while (query < p.query_tokens && slices.size() < 12) {
    const int64_t end = Pick(generator, query + 1, p.query_tokens);
    int64_t key = 0;
    while (key < p.key_tokens && slices.size() < 12) {
      const int64_t begin = Pick(generator, key, p.key_tokens);
      key = Pick(generator, begin, p.key_tokens);
      slices.push_back({{query, end}, {begin, key}, static_cast<SliceType>(Pick(generator, 0, 3))});
      if (Pick(generator, 0, 1) == 0) break;
    }
    query = end;
  }
  return Mask::FromSlices(p.query_tokens, p.key_tokens, slices).value();
}

// A prefix everyone attends, then causal branches that do not see each other.
Mask SharedPrefix(const Problem& p, std::mt19937_64& generator) {
  const int64_t prefix = Pick(generator, 0, p.query_tokens);
  const int64_t middle = Pick(generator, prefix, p.query_tokens);
  const std::vector<MaskSlice> slices = {{{0, prefix}, {0, prefix}, SliceType::kCausal},
                                         {{prefix, p.query_tokens}, {0, prefix}, SliceType::kFull},
                                         {{prefix, middle}, {prefix, middle}, SliceType::kCausal},
                                         {{middle, p.query_tokens}, {middle, p.query_tokens}, SliceType::kCausal}};
  return Mask::FromSlices(p.query_tokens, p.key_tokens, slices).value();
}

Mask RandomMask(const Problem& p, std::mt19937_64& generator) {
  const bool square = p.query_tokens == p.key_tokens;
  const Window window{Pick(generator, 0, 20), Pick(generator, -1, 5)};
  switch (Pick(generator, 0, square ? 7 : 3)) {
    case 0:
      return Mask::Full(p.query_tokens, p.key_tokens).value();
    case 1:
      return Mask::Causal(p.query_tokens, p.key_tokens).value();
    case 2:
      return Mask::Causal(p.query_tokens, p.key_tokens, window).value();
    case 3:
      return RandomSlices(p, generator);
    case 4:
      return SharedPrefix(p, generator);
    case 5:
      return Mask::Documents(p.query_tokens, RandomBoundaries(p.query_tokens, generator), SliceType::kFull).value();
    case 6:
      return Mask::Documents(p.query_tokens, RandomBoundaries(p.query_tokens, generator), SliceType::kCausal, window)
          .value();
    default:
      return Mask::Documents(p.query_tokens, RandomBoundaries(p.query_tokens, generator), SliceType::kCausal).value();
  }
}

}  // namespace

std::mt19937_64 GeneratorFor(std::string_view name) {
  std::seed_seq seed(name.begin(), name.end());
  return std::mt19937_64(seed);
}

Problem RandomProblem(std::mt19937_64& generator, int64_t most_tokens) {
  Problem p;
  // A third of the lengths are tiny, so that shards are empty at most rank counts.
  p.query_tokens = Pick(generator, 0, Pick(generator, 0, 2) == 0 ? 9 : most_tokens);
  p.key_tokens = Pick(generator, 0, 3) == 0 ? Pick(generator, 0, most_tokens) : p.query_tokens;
  p.kv_heads = static_cast<int>(Pick(generator, 1, 4));
  p.query_heads = p.kv_heads * static_cast<int>(Pick(generator, 1, 3));
  p.qk_width = static_cast<int>(Pick(generator, 0, 1) == 0 ? 32 : Pick(generator, 1, 72));
  p.v_width = static_cast<int>(Pick(generator, 0, 1) == 0 ? p.qk_width : Pick(generator, 1, 72));
  p.dtype = static_cast<DType>(Pick(generator, 0, 2));
  p.mask = RandomMask(p, generator);
  if (Pick(generator, 0, 3) == 0) p.score.scale = 0.3f;
  if (Pick(generator, 0, 3) == 0) p.score.soft_cap = 5.0f;
  p.score.alibi = Pick(generator, 0, 3) == 0;
  p.score.sink = Pick(generator, 0, 2) == 0;
  return p;
}

Tensors RandomTensors(const Problem& problem, std::mt19937_64& generator) {
  std::normal_distribution<float> normal;
  const auto fill = [&](int64_t rows, int heads, int width) {
    std::vector<std::byte> data(rows * heads * width * SizeInBytes(problem.dtype));
    for (int64_t i = 0; i < rows * heads * width; ++i)
      StoreFromDouble(data.data(), problem.dtype, i, Drawn(problem.dtype, normal(generator)));

    return data;
  };
  Tensors tensors;
  tensors.query = fill(problem.query_tokens, problem.query_heads, problem.qk_width);
  tensors.key = fill(problem.key_tokens, problem.kv_heads, problem.qk_width);
  tensors.value = fill(problem.key_tokens, problem.kv_heads, problem.v_width);
  for (int h = 0; h < problem.query_heads; ++h) {
    if (problem.score.alibi) tensors.alibi_slopes.push_back(0.5f / static_cast<float>(h + 1));
    if (problem.score.sink) tensors.sinks.push_back(normal(generator));
  }
  return tensors;
}

ConstTensorView QueryView(const Problem& p, const Tensors& tensors) {
  return ConstTensorView::Dense(tensors.query.data(), p.dtype, p.query_tokens, p.query_heads, p.qk_width);
}
ConstTensorView KeyView(const Problem& p, const Tensors& tensors) {
  return ConstTensorView::Dense(tensors.key.data(), p.dtype, p.key_tokens, p.kv_heads, p.qk_width);
}
ConstTensorView ValueView(const Problem& p, const Tensors& tensors) {
  return ConstTensorView::Dense(tensors.value.data(), p.dtype, p.key_tokens, p.kv_heads, p.v_width);
}

}  // namespace tessera::testing
