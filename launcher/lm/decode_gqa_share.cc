#include "launcher/lm/decode_gqa_share.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "collectives/agreement.h"
#include "launcher/lm/decode_subject_parts.h"

namespace tessera::launcher {

GqaShare::GqaShare(const DecodeLoad& load, const Method& method, int ranks, int rank) : load_(load), rank_(rank) {
  const GqaShape& shape = load.shape.gqa();
  spec_.method = method.method;
  spec_.ranks = ranks;
  spec_.heads = shape.heads;
  spec_.kv_heads = shape.kv_heads;
  spec_.qk_width = spec_.v_width = shape.width;
  spec_.dtype = load.dtype;
  sharding_ = ShardingOf(spec_, kPageTokens);
  local_rows_ = sharding_.LocalRows(rank, load.context_tokens + load.query_tokens);
  for (int64_t t = 1; t <= load.query_tokens; ++t) {
    visible_.push_back({0, sharding_.LocalRows(rank, load.context_tokens + t)});
  }
}

float GqaShare::scale() const {
  return 1.0f / std::sqrt(static_cast<float>(spec_.qk_width));
}

CacheOptions GqaShare::cache_options() const {
  CacheOptions options;
  options.shape = sharding_.LocalShape(rank_, {.latent = false,
                                               .kv_heads = spec_.kv_heads,
                                               .key_width = spec_.qk_width,
                                               .value_width = spec_.v_width,
                                               .dtype = load_.dtype});
  options.page_tokens = kPageTokens;
  options.pages = load_.batch * ((local_rows_ + kPageTokens - 1) / kPageTokens);
  return options;
}

double GqaShare::flops() const {
  const bool by_tokens = sharding_.axis == CacheAxis::kSequence;
  const double share =
      by_tokens ? static_cast<double>(local_rows_) / static_cast<double>(load_.context_tokens + load_.query_tokens) : 1;
  return AttentionFlops(load_, by_tokens ? spec_.heads : query_heads().size(), spec_.qk_width + spec_.v_width, share);
}

std::vector<std::byte> GqaShare::Query() const {
  const HeadRange heads = query_heads();
  const int64_t width = spec_.qk_width;
  std::vector<std::byte> query(load_.rows() * heads.size() * width * SizeInBytes(load_.dtype));
  int64_t next = 0;
  for (int64_t sequence = 0; sequence < load_.batch; ++sequence) {
    const std::vector<float> input = StepInput(load_, sequence);
    for (int64_t t = 0; t < load_.query_tokens; ++t) {
      const float* const row = input.data() + (t * spec_.heads + heads.begin) * width;
      for (int64_t i = 0; i < heads.size() * width; ++i) StoreFromFloat(query.data(), load_.dtype, next++, row[i]);
    }
  }
  return query;
}

Status GqaShare::ForEachRows(
    int64_t sequence,
    const std::function<Status(int64_t first, const TensorView& keys, const TensorView& values)>& store) const {
  const HeadRange heads = sharding_.KvHeads(rank_, spec_.kv_heads);
  const int64_t tokens = load_.context_tokens + load_.query_tokens;
  const size_t row_bytes = heads.size() * spec_.qk_width * SizeInBytes(load_.dtype);
  for (int64_t first = 0; first < tokens; first += kFillTokens) {
    const int64_t count = std::min(kFillTokens, tokens - first);
    const int64_t first_held = sharding_.LocalRows(rank_, first);
    const int64_t held_rows = sharding_.LocalRows(rank_, first + count) - first_held;
    if (held_rows == 0 || heads.empty()) continue;
    const RowBuffer made(load_.dtype, count, spec_.kv_heads, spec_.qk_width);
    const RowBuffer keys(load_.dtype, held_rows, heads.size(), spec_.qk_width);
    const RowBuffer values(load_.dtype, held_rows, heads.size(), spec_.v_width);
    for (const RowBuffer* held : {&keys, &values}) {
      FillContext(load_, sequence, first, held == &values, made.view());
      int64_t next = 0;
      for (int64_t i = 0; i < count; ++i) {
        if (!sharding_.Holds(rank_, first + i)) continue;
        std::memcpy(held->view().At(next++, 0), made.view().At(i, heads.begin), row_bytes);
      }
    }
    TESSERA_RETURN_IF_ERROR(store(first_held, keys.view(), values.view()));
  }
  return absl::OkStatus();
}

StatusOr<std::vector<float>> GqaShare::Gather(Communicator& comm, std::span<const float> output) const {
  const int64_t row = int64_t{output_heads()} * spec_.v_width;
  const std::string_view mine(reinterpret_cast<const char*>(output.data()), load_.query_tokens * row * sizeof(float));
  TESSERA_ASSIGN_OR_RETURN(const std::vector<std::string> all, AllGatherText(comm, mine, "gathering results"));
  if (comm.rank() != 0) return std::vector<float>();
  std::vector<float> result(load_.query_tokens * spec_.heads * spec_.v_width);
  for (int r = 0; r < comm.size(); ++r) {
    const HeadRange heads = spec_.OutputHeads(r);
    const size_t bytes = heads.size() * spec_.v_width * sizeof(float);
    for (int64_t t = 0; t < load_.query_tokens; ++t) {
      std::memcpy(result.data() + (t * spec_.heads + heads.begin) * spec_.v_width, all[r].data() + t * bytes, bytes);
    }
  }
  return result;
}

}  // namespace tessera::launcher
