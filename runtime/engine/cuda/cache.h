// PagedCache (runtime/engine/cache.h) with its pool in device memory: the same books, pages and layout. Rows are
// written and read by kernels: AppendToCache and GatherFromCache of kernels/cuda/row_ops.h, decode attention.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/cuda/device/row_ops.h"
#include "kernels/decode.h"
#include "runtime/base/status.h"
#include "runtime/device/cuda/buffer.h"
#include "runtime/device/cuda/device.h"
#include "runtime/engine/cache_books.h"

struct CUstream_st;

namespace tessera {

// Move-only. Errors as in PagedCache. The books change at once, the pool in the order of `stream`: what reads and
// writes rows is submitted to that stream too, or ordered with it by events.
class CudaPagedCache : public CacheBooks {
 public:
  // The memory is the stream's (see DeviceBuffer), which outlives this. InvalidArgument names the option;
  // ResourceExhausted when the memory cannot be had: it names what was asked for and what was free.
  static StatusOr<CudaPagedCache> Create(const CacheOptions& options, const CudaDevice& device, CUstream_st* stream);

  // As in PagedCache. Enqueues the copy of a shared page that is about to be written to. An error of the device in that
  // comes after the books have changed.
  Status Append(std::span<const CacheGrowth> growth);
  // As in PagedCache. Enqueues the copy of a partial last page.
  StatusOr<SequenceId> Fork(SequenceId parent, int64_t rows);

  CacheLayer layer(int layer) const;  // device memory
  // Where a row is stored; page -1 when there is no such row, which the kernels skip.
  cuda::CacheSlot SlotOf(SequenceId sequence, int64_t row) const;

 private:
  CudaPagedCache(const PoolLayout& layout, DeviceBuffer pool, CUstream_st* stream)
      : CacheBooks(layout), pool_(std::move(pool)), stream_(stream) {}
  Status CopyRuns(int64_t from, int64_t to, int64_t rows, int64_t row_bytes) const;
  Status Copy(const PageCopy& copy) const;

  DeviceBuffer pool_;
  CUstream_st* stream_;
};

}  // namespace tessera
