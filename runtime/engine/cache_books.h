// What a paged cache has whatever memory its pool is in: the books of its sequences, and where their rows lie.
#pragma once

#include <cstdint>
#include <span>

#include "runtime/engine/page_table.h"
#include "runtime/engine/pool_layout.h"

namespace tessera {

// The part of PagedCache (cache.h) and CudaPagedCache (cuda/cache.h) that touches no row. Not thread-safe. Row numbers
// are local rows of the sequence on this rank. NotFound for an id that was never given out or was released.
// `shape.kv_heads` may be 0: a rank that serves no head keeps count of rows that take no memory.
class CacheBooks {
 public:
  SequenceId Start() { return table_.Start(); }  // an empty sequence; takes no page
  // Drops rows from the end, as speculative decoding does with tokens it rejects. When that leaves part of a shared
  // page, the next Append copies the page first.
  Status Truncate(SequenceId sequence, int64_t rows) { return table_.Truncate(sequence, rows); }
  Status Release(SequenceId sequence) { return table_.Release(sequence); }

  int64_t rows(SequenceId sequence) const { return table_.rows(sequence); }  // -1 when there is no such sequence
  // Valid until the sequence changes.
  std::span<const int32_t> pages(SequenceId sequence) const { return table_.pages(sequence); }

  const CacheOptions& options() const { return layout_.options; }
  int64_t free_pages() const { return table_.free_pages(); }
  // Of the pool: per layer and page the keys and the values of page_tokens rows, each rounded up to 64 bytes (nothing
  // to round when page_tokens is a multiple of 32).
  int64_t bytes() const { return layout_.bytes(); }
  int64_t bytes_per_token_layer() const { return layout_.options.shape.bytes(); }  // what one row of one layer takes

 protected:
  // The layout's options are valid.
  explicit CacheBooks(const PoolLayout& layout) : table_(layout.options), layout_(layout) {}
  CacheBooks(CacheBooks&&) noexcept = default;
  CacheBooks& operator=(CacheBooks&&) noexcept = default;
  ~CacheBooks() = default;

  PageTable table_;
  PoolLayout layout_;
};

}  // namespace tessera
