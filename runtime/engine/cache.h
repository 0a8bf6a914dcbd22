// A paged key/value or latent cache of one rank: sequences grow by rows, share pages with their forks, and give pages
// back.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "kernels/decode.h"
#include "runtime/base/status.h"
#include "runtime/engine/page_table.h"

namespace tessera {

// Not thread-safe. Row numbers are local rows of the sequence on this rank. NotFound for an id that was never given out
// or was released. `shape.kv_heads` may be 0: a rank that serves no head keeps count of rows that take no memory.
class PagedCache {
 public:
  // InvalidArgument names the option; ResourceExhausted when the memory cannot be had.
  static StatusOr<PagedCache> Create(const CacheOptions& options);
  PagedCache(PagedCache&&) noexcept;
  PagedCache& operator=(PagedCache&&) noexcept;
  ~PagedCache();

  // An empty sequence; takes no page.
  SequenceId Start();
  // Adds uninitialised rows to several sequences, all or nothing: ResourceExhausted, naming the pages needed and free,
  // leaves every sequence as it was.
  Status Append(std::span<const CacheGrowth> growth);
  // A new sequence of the parent's first `rows` rows. Full pages are shared; a partial last page is copied, for which a
  // page must be free.
  StatusOr<SequenceId> Fork(SequenceId parent, int64_t rows);
  // Drops rows from the end, as speculative decoding does with tokens it rejects. When that leaves part of a shared
  // page, the next Append copies the page first.
  Status Truncate(SequenceId sequence, int64_t rows);
  Status Release(SequenceId sequence);

  int64_t rows(SequenceId sequence) const;                    // -1 when there is no such sequence
  std::span<const int32_t> pages(SequenceId sequence) const;  // valid until the sequence changes
  CacheLayer layer(int layer) const;                          // without memory when there is no such layer
  // Where (row, kv head) is stored; null when there is no such row. The rows of a head that share a page follow each
  // other without gaps. Rows in shared pages must not be written: Append never hands such rows out.
  std::byte* Key(int layer, SequenceId sequence, int64_t row, int kv_head = 0);
  std::byte* Value(int layer, SequenceId sequence, int64_t row, int kv_head = 0);

  const CacheOptions& options() const;
  int64_t free_pages() const;
  // Of the pool: per layer and page the keys and the values of page_tokens rows, each rounded up to 64 bytes (nothing
  // to round when page_tokens is a multiple of 32).
  int64_t bytes() const;
  int64_t bytes_per_token_layer() const;  // what one row of one layer takes

 private:
  struct State;
  explicit PagedCache(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace tessera
