// The cache in host memory.
#include "runtime/engine/cache.h"

#include <algorithm>

#include "tests/unit/engine/cache_cases.h"

namespace tessera::testing {
namespace {

class HostCache {
 public:
  static constexpr int kOperations = 4000;
  static StatusOr<HostCache> Create(const CacheOptions& options) {
    TESSERA_ASSIGN_OR_RETURN(PagedCache cache, PagedCache::Create(options));
    return HostCache(std::move(cache));
  }
  PagedCache& cache() { return cache_; }
  std::byte* Address(int layer, SequenceId id, int64_t row, int head, bool value) {
    return value ? cache_.Value(layer, id, row, head) : cache_.Key(layer, id, row, head);
  }
  void Write(std::byte* address, const std::vector<std::byte>& bytes) { std::ranges::copy(bytes, address); }
  std::vector<std::byte> Pool() const {
    const std::byte* const pool = cache_.layer(0).key;
    return {pool, pool + cache_.bytes()};
  }

 private:
  explicit HostCache(PagedCache cache) : cache_(std::move(cache)) {}
  PagedCache cache_;
};
INSTANTIATE_TYPED_TEST_SUITE_P(Host, AnyCache, HostCache);

}  // namespace
}  // namespace tessera::testing
