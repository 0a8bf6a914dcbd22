#include "runtime/engine/reshard_check.h"

#include <algorithm>

namespace tessera {
namespace {

CacheRowShape ShapeAt(const CacheEnd& end, const CacheRowShape& shape, int index) {
  return end.layouts.empty() ? end.sharding.LocalShape(index, shape) : shape;
}

int64_t RowsAt(const CacheEnd& end, int64_t tokens, int sequence, int index) {
  return end.layouts.empty() ? end.sharding.LocalRows(index, tokens) : end.layouts[sequence].rows(index);
}

Status CheckView(const char* name, const ConstTensorView& view, int64_t rows, int heads, int width, DType dtype) {
  if (view.rows == rows && view.heads == heads && view.width == width && view.dtype == dtype &&
      view.space == MemorySpace::kHost && (view.data != nullptr || view.elements() == 0)) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrFormat("source %s rows are [%d, %d, %d] %s%s; this rank's part is [%d, %d, %d] %s on the host", name,
                      view.rows, view.heads, view.width, std::string(Name(view.dtype)),
                      view.data == nullptr ? ", null" : "", rows, heads, width, std::string(Name(dtype))));
}

}  // namespace

Status CheckReshard(const ReshardSpec& spec, const ReshardOptions& options, int world) {
  TESSERA_RETURN_IF_ERROR(Validate(spec));
  for (const CacheEnd* end : {&spec.from, &spec.to}) {
    for (int rank : end->ranks) {
      if (rank >= world) {
        return absl::InvalidArgumentError(
            absl::StrFormat("reshard: rank %d is named; the communicator has %d ranks", rank, world));
      }
    }
  }
  if (options.layers < 1) {
    return absl::InvalidArgumentError(absl::StrFormat("reshard: layers is %d; it must be at least 1", options.layers));
  }
  if (options.staging_bytes < 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("reshard: staging_bytes is %d; it must be at least 0", options.staging_bytes));
  }
  return absl::OkStatus();
}

Status CheckCache(const char* name, const PagedCache& cache, const CacheRowShape& shape, int layers) {
  const CacheOptions& options = cache.options();
  if (options.shape == shape && options.layers == layers) return absl::OkStatus();
  const auto print = [](const CacheRowShape& s, int l) {
    return absl::StrFormat("%d layers of %d heads, key width %d, value width %d, %s%s", l, s.kv_heads, s.key_width,
                           s.value_width, std::string(Name(s.dtype)), s.latent ? ", latent" : "");
  };
  return absl::InvalidArgumentError(absl::StrCat("the ", name, " cache has ", print(options.shape, options.layers),
                                                 "; this rank's part is ", print(shape, layers)));
}

Status CheckSource(const ReshardSpec& spec, const ReshardOptions& options, int rank, Range layers,
                   const ReshardSource& source) {
  if (layers.begin < 0 || layers.size() < 0 || layers.end > options.layers) {
    return absl::InvalidArgumentError(
        absl::StrFormat("layers [%d, %d) are to move; there are %d", layers.begin, layers.end, options.layers));
  }
  const int index = spec.from.IndexOf(rank);
  if (index == kNoIndex) return absl::OkStatus();
  const CacheRowShape shape = ShapeAt(spec.from, spec.shape, index);
  const size_t count = spec.tokens.size();
  if (source.cache != nullptr) {
    TESSERA_RETURN_IF_ERROR(CheckCache("source", *source.cache, shape, options.layers));
    if (source.sequences.size() != count) {
      return absl::InvalidArgumentError(
          absl::StrFormat("the source names %d sequences; the spec has %d", source.sequences.size(), count));
    }
    for (size_t s = 0; s < count; ++s) {
      const int64_t rows = RowsAt(spec.from, spec.tokens[s], static_cast<int>(s), index);
      const int64_t has = source.cache->rows(source.sequences[s]);
      if (has >= rows) continue;
      if (has < 0) return absl::NotFoundError(absl::StrFormat("the source has no sequence %d", source.sequences[s]));
      return absl::InvalidArgumentError(
          absl::StrFormat("source sequence %d has %d rows; %d are to move", source.sequences[s], has, rows));
    }
    return absl::OkStatus();
  }
  if (source.rows.size() != count * static_cast<size_t>(layers.size())) {
    return absl::InvalidArgumentError(
        absl::StrFormat("the source has %d dense tensors and no cache; %d layers of %d "
                        "sequences are to move",
                        source.rows.size(), layers.size(), count));
  }
  for (size_t i = 0; i < source.rows.size(); ++i) {
    const size_t s = i % count;
    const int64_t rows = RowsAt(spec.from, spec.tokens[s], static_cast<int>(s), index);
    const DenseRows& dense = source.rows[i];
    TESSERA_RETURN_IF_ERROR(CheckView("key", dense.key, rows, shape.kv_heads, shape.key_width, shape.dtype));
    if (shape.latent) continue;
    TESSERA_RETURN_IF_ERROR(CheckView("value", dense.value, rows, shape.kv_heads, shape.value_width, shape.dtype));
  }
  return absl::OkStatus();
}

}  // namespace tessera
