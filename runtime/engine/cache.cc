#include "runtime/engine/cache.h"

#include <cstring>
#include <utility>

namespace tessera {

StatusOr<PagedCache> PagedCache::Create(const CacheOptions& options) {
  TESSERA_RETURN_IF_ERROR(Validate(options));
  TESSERA_ASSIGN_OR_RETURN(const PoolLayout layout, PoolLayout::Of(options));
  TESSERA_ASSIGN_OR_RETURN(HostBuffer pool, HostBuffer::Allocate(layout.bytes(), "the cache's pool"));
  return PagedCache(layout, std::move(pool));
}

void PagedCache::Copy(const PageCopy& copy) {
  for (int layer = 0; layer < layout_.options.layers; ++layer) {
    for (int head = 0; head < layout_.options.shape.kv_heads; ++head) {
      std::memcpy(pool_.data() + layout_.KeyRow(layer, {copy.to, 0}, head),
                  pool_.data() + layout_.KeyRow(layer, {copy.from, 0}, head), copy.rows * layout_.key_bytes);
      if (layout_.value_bytes == 0) continue;
      std::memcpy(pool_.data() + layout_.ValueRow(layer, {copy.to, 0}, head),
                  pool_.data() + layout_.ValueRow(layer, {copy.from, 0}, head), copy.rows * layout_.value_bytes);
    }
  }
}

Status PagedCache::Append(std::span<const CacheGrowth> growth) {
  TESSERA_ASSIGN_OR_RETURN(const std::vector<PageCopy> copies, table_.Append(growth));
  for (const PageCopy& copy : copies) Copy(copy);
  return absl::OkStatus();
}

StatusOr<SequenceId> PagedCache::Fork(SequenceId parent, int64_t rows) {
  TESSERA_ASSIGN_OR_RETURN(const PageTable::Forked forked, table_.Fork(parent, rows));
  if (forked.copy) Copy(*forked.copy);
  return forked.child;
}

CacheLayer PagedCache::layer(int layer) const {
  return layout_.Layer(pool_.data(), layer);
}

std::byte* PagedCache::Key(int layer, SequenceId sequence, int64_t row, int kv_head) {
  const auto place = table_.PlaceOf(sequence, row);
  if (!place || !Has(layer, kv_head)) return nullptr;
  return pool_.data() + layout_.KeyRow(layer, *place, kv_head);
}

std::byte* PagedCache::Value(int layer, SequenceId sequence, int64_t row, int kv_head) {
  const auto place = table_.PlaceOf(sequence, row);
  if (!place || !Has(layer, kv_head)) return nullptr;
  return pool_.data() + layout_.ValueRow(layer, *place, kv_head);
}

}  // namespace tessera
