#include "runtime/engine/cuda/cache.h"

#include <utility>

#include "kernels/cuda/steps.h"
#include "runtime/device/cuda/buffer.h"
#include "runtime/engine/pool_layout.h"

namespace tessera {

struct CudaPagedCache::State {
  PageTable table;
  PoolLayout layout;
  DeviceBuffer pool;
  CUstream_st* stream;

  // The rows of a head that share a page follow each other: one run per head, a head's rows apart.
  Status CopyRuns(int64_t from, int64_t to, int64_t rows, int64_t row_bytes) const {
    const int64_t head_stride = layout.options.page_tokens * row_bytes;
    return cuda::CopyRows(pool.data() + to, head_stride, pool.data() + from, head_stride, rows * row_bytes,
                          layout.options.shape.kv_heads, stream);
  }

  Status Copy(const PageCopy& copy) const {
    for (int layer = 0; layer < layout.options.layers; ++layer) {
      TESSERA_RETURN_IF_ERROR(CopyRuns(layout.KeyRow(layer, {copy.from, 0}, 0), layout.KeyRow(layer, {copy.to, 0}, 0),
                                       copy.rows, layout.key_bytes));
      if (layout.value_bytes == 0) continue;
      TESSERA_RETURN_IF_ERROR(CopyRuns(layout.ValueRow(layer, {copy.from, 0}, 0),
                                       layout.ValueRow(layer, {copy.to, 0}, 0), copy.rows, layout.value_bytes));
    }
    return absl::OkStatus();
  }
};

CudaPagedCache::CudaPagedCache(std::unique_ptr<State> state) : state_(std::move(state)) {}
CudaPagedCache::CudaPagedCache(CudaPagedCache&&) noexcept = default;
CudaPagedCache& CudaPagedCache::operator=(CudaPagedCache&&) noexcept = default;
CudaPagedCache::~CudaPagedCache() = default;

StatusOr<CudaPagedCache> CudaPagedCache::Create(const CacheOptions& options, const CudaDevice& device,
                                                CUstream_st* stream) {
  TESSERA_RETURN_IF_ERROR(Validate(options));
  TESSERA_ASSIGN_OR_RETURN(const PoolLayout layout, PoolLayout::Of(options));
  TESSERA_ASSIGN_OR_RETURN(DeviceBuffer pool,
                           DeviceBuffer::Allocate(device, layout.bytes(), "the cache's pool", stream));
  return CudaPagedCache(std::make_unique<State>(State{PageTable(options), layout, std::move(pool), stream}));
}

SequenceId CudaPagedCache::Start() {
  return state_->table.Start();
}

Status CudaPagedCache::Append(std::span<const CacheGrowth> growth) {
  TESSERA_ASSIGN_OR_RETURN(const std::vector<PageCopy> copies, state_->table.Append(growth));
  for (const PageCopy& copy : copies) TESSERA_RETURN_IF_ERROR(state_->Copy(copy));
  return absl::OkStatus();
}

StatusOr<SequenceId> CudaPagedCache::Fork(SequenceId parent, int64_t rows) {
  TESSERA_ASSIGN_OR_RETURN(const PageTable::Forked forked, state_->table.Fork(parent, rows));
  if (forked.copy) TESSERA_RETURN_IF_ERROR(state_->Copy(*forked.copy));
  return forked.child;
}

Status CudaPagedCache::Truncate(SequenceId sequence, int64_t rows) {
  return state_->table.Truncate(sequence, rows);
}
Status CudaPagedCache::Release(SequenceId sequence) {
  return state_->table.Release(sequence);
}
int64_t CudaPagedCache::rows(SequenceId sequence) const {
  return state_->table.rows(sequence);
}
std::span<const int32_t> CudaPagedCache::pages(SequenceId sequence) const {
  return state_->table.pages(sequence);
}
CacheLayer CudaPagedCache::layer(int layer) const {
  return state_->layout.Layer(state_->pool.data(), layer);
}

cuda::CacheSlot CudaPagedCache::SlotOf(SequenceId sequence, int64_t row) const {
  const auto place = state_->table.PlaceOf(sequence, row);
  if (!place) return {-1, 0};
  return {place->page, static_cast<int32_t>(place->row)};
}

const CacheOptions& CudaPagedCache::options() const {
  return state_->layout.options;
}
int64_t CudaPagedCache::free_pages() const {
  return state_->table.free_pages();
}
int64_t CudaPagedCache::bytes() const {
  return state_->pool.bytes();
}
int64_t CudaPagedCache::bytes_per_token_layer() const {
  return state_->layout.options.shape.bytes();
}

}  // namespace tessera
