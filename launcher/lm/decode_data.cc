// The random layers and contexts that decoding is measured on.
#include <cmath>

#include "launcher/lm/decode_subject.h"
#include "runtime/base/counter_random.h"

namespace tessera::launcher {
namespace {

// Tensors of the random generator.
enum : uint8_t { kContextKey = 0, kContextValue = 1, kStepInput = 2, kFirstWeight = 16 };

uint64_t SeedOf(const DecodeLoad& load, int64_t sequence) {
  return load.seed + 0x9e3779b97f4a7c15u * static_cast<uint64_t>(sequence);
}

}  // namespace

RandomMlaWeights::RandomMlaWeights(const MlaShape& shape, uint64_t seed) {
  storage_.reserve(8);
  const auto make = [&](int64_t rows, int64_t columns) {
    const auto tensor = static_cast<uint8_t>(kFirstWeight + storage_.size());
    auto& bytes = storage_.emplace_back(rows * columns * 2);
    const Segment all{0, rows, 1};
    FillNormal(seed, tensor, {&all, 1},
               TensorView::Dense(bytes.data(), DType::kBFloat16, rows, 1, static_cast<int>(columns)));
    // A power of two, so that scaling rounds nothing.
    const float scale = std::exp2(-std::round(std::log2(std::sqrt(static_cast<float>(columns)))));
    for (int64_t i = 0; i < rows * columns; ++i) {
      StoreFromFloat(bytes.data(), DType::kBFloat16, i, LoadAsFloat(bytes.data(), DType::kBFloat16, i) * scale);
    }
    return MatrixView{bytes.data(), DType::kBFloat16, rows, columns};
  };
  const auto ones = [&](int64_t count) {
    auto& bytes = storage_.emplace_back(count * 2);
    for (int64_t i = 0; i < count; ++i) StoreFromFloat(bytes.data(), DType::kBFloat16, i, 1.0f);
    return MatrixView{bytes.data(), DType::kBFloat16, count, 1};
  };
  const int64_t query_rows = int64_t{shape.heads} * shape.qk_width();
  if (shape.query_rank > 0) {
    view_.query_down = make(shape.query_rank, shape.hidden);
    view_.query_norm = ones(shape.query_rank);
    view_.query_up = make(query_rows, shape.query_rank);
  } else {
    view_.query = make(query_rows, shape.hidden);
  }
  view_.kv_down = make(shape.cache_width(), shape.hidden);
  view_.kv_norm = ones(shape.latent);
  view_.kv_up = make(int64_t{shape.heads} * (shape.nope + shape.value), shape.latent);
  view_.output = make(shape.hidden, int64_t{shape.heads} * shape.value);
}

void FillContext(const DecodeLoad& load, int64_t sequence, int64_t first_token, bool value, const TensorView& rows) {
  const Segment segment{first_token, rows.rows, 1};
  FillNormal(SeedOf(load, sequence), value ? kContextValue : kContextKey, {&segment, 1}, rows);
}

std::vector<float> StepInput(const DecodeLoad& load, int64_t sequence) {
  const int heads = load.shape.is_mla() ? 1 : load.shape.gqa().heads;
  const int width = load.shape.is_mla() ? load.shape.mla().hidden : load.shape.gqa().width;
  std::vector<float> values(load.query_tokens * heads * width);
  const Segment segment{load.context_tokens, load.query_tokens, 1};
  FillNormal(SeedOf(load, sequence), kStepInput, {&segment, 1},
             TensorView::Dense(values.data(), DType::kFloat32, load.query_tokens, heads, width));
  return values;
}

}  // namespace tessera::launcher
