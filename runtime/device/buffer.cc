#include "runtime/device/buffer.h"

#include <sys/mman.h>

#include <cstdlib>

#include "runtime/device/numa.h"

namespace tessera {
namespace {

constexpr int64_t kCacheLine = 64;
constexpr int64_t kHugePage = 2 << 20;

}  // namespace

StatusOr<HostBuffer> HostBuffer::Allocate(int64_t bytes, std::string_view what) {
  HostBuffer buffer;
  if (bytes == 0) return buffer;
  const int64_t alignment = bytes >= kHugePage ? kHugePage : kCacheLine;
  const int64_t rounded = (bytes + alignment - 1) / alignment * alignment;
  auto* data = static_cast<std::byte*>(std::aligned_alloc(alignment, rounded));
  if (data == nullptr) {
    return absl::ResourceExhaustedError(
        absl::StrFormat("%s needs %d bytes of memory and they are not to be had", what, bytes));
  }
  // A hint: transparent huge pages save TLB misses on long shards, and nothing breaks where they are off.
  if (alignment == kHugePage) {
    (void)madvise(data, rounded, MADV_HUGEPAGE);
    static const std::vector<NumaNode> numa_nodes = ReadNumaNodes();
    const uint64_t nodes = NodesToInterleave(numa_nodes, CoresOfThisThread());
    if (nodes != 0) (void)InterleavePages(data, rounded, nodes);
  }
  buffer.data_.reset(data);
  buffer.bytes_ = bytes;
  return buffer;
}

void HostBuffer::Free::operator()(std::byte* data) const {
  std::free(data);
}

}  // namespace tessera
