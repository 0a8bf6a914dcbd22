// Where the pool of a cache has its rows, in host or device memory. Internal to the engine.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/decode.h"
#include "runtime/engine/page_table.h"

namespace tessera {

// [layers][pages][keys, values][kv heads][page rows][width]: a decode step walks one layer, so a layer's pages lie
// together, and within a page the rows of a head follow each other, so a kernel streams them.
struct PoolLayout {
  CacheOptions options;
  int64_t key_bytes = 0;     // of one row of one head
  int64_t value_bytes = 0;   // 0 for a latent cache: its value is inside the key
  int64_t value_offset = 0;  // of a page's values within the page
  int64_t page_stride = 0;
  int64_t layer_stride = 0;

  // ResourceExhausted when no machine could have that much.
  static StatusOr<PoolLayout> Of(const CacheOptions& options);

  int64_t bytes() const { return layer_stride * options.layers; }
  // Offsets from the beginning of the pool.
  int64_t Page(int layer, int32_t page) const { return layer * layer_stride + page * page_stride; }
  int64_t KeyRow(int layer, const PageTable::Place& place, int kv_head) const {
    return Page(layer, place.page) + (int64_t{kv_head} * options.page_tokens + place.row) * key_bytes;
  }
  int64_t ValueRow(int layer, const PageTable::Place& place, int kv_head) const {
    if (options.shape.latent) return KeyRow(layer, place, kv_head);
    return Page(layer, place.page) + value_offset + (int64_t{kv_head} * options.page_tokens + place.row) * value_bytes;
  }
  bool Has(int layer) const { return layer >= 0 && layer < options.layers; }
  // A layer of the pool at `pool`; without memory when there is no such layer.
  CacheLayer Layer(std::byte* pool, int layer) const;
};

}  // namespace tessera
