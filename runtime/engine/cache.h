// A paged key/value or latent cache of one rank: sequences grow by rows, share pages with their forks, and give pages
// back.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/decode.h"
#include "runtime/base/status.h"
#include "runtime/device/buffer.h"
#include "runtime/engine/cache_books.h"

namespace tessera {

// Move-only.
class PagedCache : public CacheBooks {
 public:
  // InvalidArgument names the option; ResourceExhausted when the memory cannot be had.
  static StatusOr<PagedCache> Create(const CacheOptions& options);

  // Adds uninitialised rows to several sequences, all or nothing: ResourceExhausted, naming the pages needed and free,
  // leaves every sequence as it was.
  Status Append(std::span<const CacheGrowth> growth);
  // A new sequence of the parent's first `rows` rows. Full pages are shared; a partial last page is copied, for which a
  // page must be free.
  StatusOr<SequenceId> Fork(SequenceId parent, int64_t rows);

  CacheLayer layer(int layer) const;  // without memory when there is no such layer
  // Where (row, kv head) is stored; null when there is no such row. The rows of a head that share a page follow each
  // other without gaps. Rows in shared pages must not be written: Append never hands such rows out.
  std::byte* Key(int layer, SequenceId sequence, int64_t row, int kv_head = 0);
  std::byte* Value(int layer, SequenceId sequence, int64_t row, int kv_head = 0);

 private:
  PagedCache(const PoolLayout& layout, HostBuffer pool) : CacheBooks(layout), pool_(std::move(pool)) {}
  void Copy(const PageCopy& copy);
  bool Has(int layer, int head) const {
    return layout_.Has(layer) && head >= 0 && head < layout_.options.shape.kv_heads;
  }

  HostBuffer pool_;
};

}  // namespace tessera
