#include "runtime/engine/cache.h"

#include <cstring>
#include <utility>

#include "runtime/device/buffer.h"
#include "runtime/engine/pool_layout.h"

namespace tessera {

struct PagedCache::State {
  PageTable table;
  PoolLayout layout;
  HostBuffer pool;

  void Copy(const PageCopy& copy) {
    for (int layer = 0; layer < layout.options.layers; ++layer) {
      for (int head = 0; head < layout.options.shape.kv_heads; ++head) {
        std::memcpy(pool.data() + layout.KeyRow(layer, {copy.to, 0}, head),
                    pool.data() + layout.KeyRow(layer, {copy.from, 0}, head), copy.rows * layout.key_bytes);
        if (layout.value_bytes == 0) continue;
        std::memcpy(pool.data() + layout.ValueRow(layer, {copy.to, 0}, head),
                    pool.data() + layout.ValueRow(layer, {copy.from, 0}, head), copy.rows * layout.value_bytes);
      }
    }
  }

  bool Has(int layer, int head) const { return layout.Has(layer) && head >= 0 && head < layout.options.shape.kv_heads; }
};

PagedCache::PagedCache(std::unique_ptr<State> state) : state_(std::move(state)) {}
PagedCache::PagedCache(PagedCache&&) noexcept = default;
PagedCache& PagedCache::operator=(PagedCache&&) noexcept = default;
PagedCache::~PagedCache() = default;

StatusOr<PagedCache> PagedCache::Create(const CacheOptions& options) {
  TESSERA_RETURN_IF_ERROR(Validate(options));
  TESSERA_ASSIGN_OR_RETURN(const PoolLayout layout, PoolLayout::Of(options));
  TESSERA_ASSIGN_OR_RETURN(HostBuffer pool, HostBuffer::Allocate(layout.bytes(), "the cache's pool"));
  return PagedCache(std::make_unique<State>(State{PageTable(options), layout, std::move(pool)}));
}

SequenceId PagedCache::Start() {
  return state_->table.Start();
}

Status PagedCache::Append(std::span<const CacheGrowth> growth) {
  TESSERA_ASSIGN_OR_RETURN(const std::vector<PageCopy> copies, state_->table.Append(growth));
  for (const PageCopy& copy : copies) state_->Copy(copy);
  return absl::OkStatus();
}

StatusOr<SequenceId> PagedCache::Fork(SequenceId parent, int64_t rows) {
  TESSERA_ASSIGN_OR_RETURN(const PageTable::Forked forked, state_->table.Fork(parent, rows));
  if (forked.copy) state_->Copy(*forked.copy);
  return forked.child;
}

Status PagedCache::Truncate(SequenceId sequence, int64_t rows) {
  return state_->table.Truncate(sequence, rows);
}
Status PagedCache::Release(SequenceId sequence) {
  return state_->table.Release(sequence);
}
int64_t PagedCache::rows(SequenceId sequence) const {
  return state_->table.rows(sequence);
}
std::span<const int32_t> PagedCache::pages(SequenceId sequence) const {
  return state_->table.pages(sequence);
}
CacheLayer PagedCache::layer(int layer) const {
  return state_->layout.Layer(state_->pool.data(), layer);
}

std::byte* PagedCache::Key(int layer, SequenceId sequence, int64_t row, int kv_head) {
  const auto place = state_->table.PlaceOf(sequence, row);
  if (!place || !state_->Has(layer, kv_head)) return nullptr;
  return state_->pool.data() + state_->layout.KeyRow(layer, *place, kv_head);
}

std::byte* PagedCache::Value(int layer, SequenceId sequence, int64_t row, int kv_head) {
  const auto place = state_->table.PlaceOf(sequence, row);
  if (!place || !state_->Has(layer, kv_head)) return nullptr;
  return state_->pool.data() + state_->layout.ValueRow(layer, *place, kv_head);
}

const CacheOptions& PagedCache::options() const {
  return state_->layout.options;
}
int64_t PagedCache::free_pages() const {
  return state_->table.free_pages();
}
int64_t PagedCache::bytes() const {
  return state_->pool.bytes();
}
int64_t PagedCache::bytes_per_token_layer() const {
  return state_->layout.options.shape.bytes();
}

}  // namespace tessera
