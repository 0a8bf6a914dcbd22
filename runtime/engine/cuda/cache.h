// PagedCache (runtime/engine/cache.h) with its pool in device memory: the same books, pages and layout. Rows are
// written and read by kernels: AppendToCache and GatherFromCache of kernels/cuda/row_ops.h, decode attention.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "kernels/cuda/device/row_ops.h"
#include "kernels/decode.h"
#include "runtime/base/status.h"
#include "runtime/device/cuda/device.h"
#include "runtime/engine/page_table.h"

struct CUstream_st;

namespace tessera {

// Not thread-safe. Calls and errors as in PagedCache. The books change at once, the pool in the order of `stream`: what
// reads and writes rows is submitted to that stream too, or ordered with it by events.
class CudaPagedCache {
 public:
  // The memory is the stream's (see DeviceBuffer), which outlives this. InvalidArgument names the option;
  // ResourceExhausted when the memory cannot be had: it names what was asked for and what was free.
  static StatusOr<CudaPagedCache> Create(const CacheOptions& options, const CudaDevice& device, CUstream_st* stream);
  CudaPagedCache(CudaPagedCache&&) noexcept;
  CudaPagedCache& operator=(CudaPagedCache&&) noexcept;
  ~CudaPagedCache();

  SequenceId Start();
  // Enqueues the copy of a shared page that is about to be written to. An error of the device in that comes after the
  // books have changed.
  Status Append(std::span<const CacheGrowth> growth);
  // Enqueues the copy of a partial last page.
  StatusOr<SequenceId> Fork(SequenceId parent, int64_t rows);
  Status Truncate(SequenceId sequence, int64_t rows);
  Status Release(SequenceId sequence);

  int64_t rows(SequenceId sequence) const;
  std::span<const int32_t> pages(SequenceId sequence) const;
  CacheLayer layer(int layer) const;  // device memory
  // Where a row is stored; page -1 when there is no such row, which the kernels skip.
  cuda::CacheSlot SlotOf(SequenceId sequence, int64_t row) const;

  const CacheOptions& options() const;
  int64_t free_pages() const;
  int64_t bytes() const;
  int64_t bytes_per_token_layer() const;

 private:
  struct State;
  explicit CudaPagedCache(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace tessera
