#include "runtime/engine/cuda/cache.h"

#include <utility>

#include "kernels/cuda/steps.h"

namespace tessera {

StatusOr<CudaPagedCache> CudaPagedCache::Create(const CacheOptions& options, const CudaDevice& device,
                                                CUstream_st* stream) {
  TESSERA_RETURN_IF_ERROR(Validate(options));
  TESSERA_ASSIGN_OR_RETURN(const PoolLayout layout, PoolLayout::Of(options));
  TESSERA_ASSIGN_OR_RETURN(DeviceBuffer pool,
                           DeviceBuffer::Allocate(device, layout.bytes(), "the cache's pool", stream));
  return CudaPagedCache(layout, std::move(pool), stream);
}

// The rows of a head that share a page follow each other: one run per head, a head's rows apart.
Status CudaPagedCache::CopyRuns(int64_t from, int64_t to, int64_t rows, int64_t row_bytes) const {
  const int64_t head_stride = layout_.options.page_tokens * row_bytes;
  return cuda::CopyRows(pool_.data() + to, head_stride, pool_.data() + from, head_stride, rows * row_bytes,
                        layout_.options.shape.kv_heads, stream_);
}

Status CudaPagedCache::Copy(const PageCopy& copy) const {
  for (int layer = 0; layer < layout_.options.layers; ++layer) {
    TESSERA_RETURN_IF_ERROR(CopyRuns(layout_.KeyRow(layer, {copy.from, 0}, 0), layout_.KeyRow(layer, {copy.to, 0}, 0),
                                     copy.rows, layout_.key_bytes));
    if (layout_.value_bytes == 0) continue;
    TESSERA_RETURN_IF_ERROR(CopyRuns(layout_.ValueRow(layer, {copy.from, 0}, 0),
                                     layout_.ValueRow(layer, {copy.to, 0}, 0), copy.rows, layout_.value_bytes));
  }
  return absl::OkStatus();
}

Status CudaPagedCache::Append(std::span<const CacheGrowth> growth) {
  TESSERA_ASSIGN_OR_RETURN(const std::vector<PageCopy> copies, table_.Append(growth));
  for (const PageCopy& copy : copies) TESSERA_RETURN_IF_ERROR(Copy(copy));
  return absl::OkStatus();
}

StatusOr<SequenceId> CudaPagedCache::Fork(SequenceId parent, int64_t rows) {
  TESSERA_ASSIGN_OR_RETURN(const PageTable::Forked forked, table_.Fork(parent, rows));
  if (forked.copy) TESSERA_RETURN_IF_ERROR(Copy(*forked.copy));
  return forked.child;
}

CacheLayer CudaPagedCache::layer(int layer) const {
  return layout_.Layer(pool_.data(), layer);
}

cuda::CacheSlot CudaPagedCache::SlotOf(SequenceId sequence, int64_t row) const {
  const auto place = table_.PlaceOf(sequence, row);
  if (!place) return {-1, 0};
  return {place->page, static_cast<int32_t>(place->row)};
}

}  // namespace tessera
