// Which pages of a pool the sequences of a cache have: growth, forks that share pages, and their return. Knows no
// memory, so that caches of the host and of GPUs keep the same books.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "partition/cache_sharding.h"
#include "runtime/base/status.h"

namespace tessera {

struct CacheOptions {
  CacheRowShape shape;  // of what this rank stores: CacheSharding::LocalShape
  int layers = 1;
  int page_tokens = 64;  // rows per page
  int64_t pages = 0;     // pages in the pool; a page holds page_tokens rows of every layer
};
// InvalidArgument names the option. `shape.kv_heads` may be 0.
Status Validate(const CacheOptions& options);

using SequenceId = int64_t;

struct CacheGrowth {
  SequenceId sequence = 0;
  int64_t rows = 0;
};

// The first `rows` rows of one page, in every layer, have to be copied to another.
struct PageCopy {
  int32_t from = 0;
  int32_t to = 0;
  int64_t rows = 0;
};

// Calls and errors are those of CacheBooks and PagedCache (runtime/engine/cache.h). Not thread-safe.
class PageTable {
 public:
  explicit PageTable(const CacheOptions& options);  // valid ones

  SequenceId Start();
  // Returns the copies that must be made before a new row is written, in any order.
  StatusOr<std::vector<PageCopy>> Append(std::span<const CacheGrowth> growth);
  struct Forked {
    SequenceId child = 0;
    std::optional<PageCopy> copy;
  };
  StatusOr<Forked> Fork(SequenceId parent, int64_t rows);
  Status Truncate(SequenceId sequence, int64_t rows);
  Status Release(SequenceId sequence);

  int64_t rows(SequenceId sequence) const;
  std::span<const int32_t> pages(SequenceId sequence) const;
  struct Place {
    int32_t page = 0;
    int64_t row = 0;  // of the page
  };
  std::optional<Place> PlaceOf(SequenceId sequence, int64_t row) const;

  const CacheOptions& options() const { return options_; }
  int64_t free_pages() const { return static_cast<int64_t>(free_.size()); }

 private:
  struct Sequence {
    int64_t rows = 0;
    std::vector<int32_t> pages;
  };
  int32_t TakePage();
  void DropPage(int32_t page);
  int64_t PagesFor(int64_t rows) const { return (rows + options_.page_tokens - 1) / options_.page_tokens; }
  Status OutOfPages(const char* doing, int64_t needed) const;
  StatusOr<Sequence*> Find(SequenceId id);

  CacheOptions options_;
  std::vector<int32_t> references_;  // per page: sequences that have it
  std::vector<int32_t> free_;        // a stack
  std::unordered_map<SequenceId, Sequence> sequences_;
  SequenceId next_ = 1;  // never used again, so a stale id is always found out
};

}  // namespace tessera
