#include "runtime/engine/pool_layout.h"

namespace tessera {
namespace {

constexpr int64_t kCacheLine = 64;

int64_t RoundUp(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

}  // namespace

StatusOr<PoolLayout> PoolLayout::Of(const CacheOptions& options) {
  PoolLayout layout;
  layout.options = options;
  const CacheRowShape& shape = options.shape;
  const auto element_bytes = static_cast<int64_t>(SizeInBytes(shape.dtype));
  layout.key_bytes = shape.key_width * element_bytes;
  layout.value_bytes = shape.latent ? 0 : shape.value_width * element_bytes;
  const int64_t head_rows = int64_t{shape.kv_heads} * options.page_tokens;
  layout.value_offset = RoundUp(head_rows * layout.key_bytes, kCacheLine);
  layout.page_stride = layout.value_offset + RoundUp(head_rows * layout.value_bytes, kCacheLine);
  // The product may not fit 64 bits; no machine has an exbibyte.
  if (double(layout.page_stride) * double(options.pages) * options.layers > 0x1p60) {
    return absl::ResourceExhaustedError(
        absl::StrFormat("cache: %d pages of %d layers and %d bytes each exceed 2^60 bytes", options.pages,
                        options.layers, layout.page_stride));
  }
  layout.layer_stride = layout.page_stride * options.pages;
  return layout;
}

CacheLayer PoolLayout::Layer(std::byte* pool, int layer) const {
  const CacheRowShape& shape = options.shape;
  CacheLayer view;
  if (!Has(layer)) return view;
  view.key = pool + Page(layer, 0);
  view.value = shape.latent ? view.key : view.key + value_offset;
  view.dtype = shape.dtype;
  view.kv_heads = shape.kv_heads;
  view.qk_width = shape.key_width;
  view.v_width = shape.value_width;
  view.page_tokens = options.page_tokens;
  view.page_stride = page_stride;
  view.key_row_stride = key_bytes;
  view.key_head_stride = options.page_tokens * key_bytes;
  view.value_row_stride = shape.latent ? key_bytes : value_bytes;
  view.value_head_stride = options.page_tokens * view.value_row_stride;
  return view;
}

}  // namespace tessera
