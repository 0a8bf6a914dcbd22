// The cache in device memory: what the host's does, and what is left when there is no memory.
#include <deque>

#include "runtime/device/cuda/buffer.h"
#include "runtime/device/cuda/stream.h"
#include "runtime/engine/cuda/cache.h"
#include "tests/unit/engine/cache_cases.h"

namespace tessera::testing {
namespace {

class DeviceCache {
 public:
  static constexpr int kOperations = 1000;
  static StatusOr<DeviceCache> Create(const CacheOptions& options) {
    TESSERA_ASSIGN_OR_RETURN(const CudaDevice device, CudaDevice::Open(0));
    TESSERA_ASSIGN_OR_RETURN(CudaStream stream, CudaStream::Create(device));
    TESSERA_ASSIGN_OR_RETURN(CudaPagedCache cache, CudaPagedCache::Create(options, device, stream.handle()));
    return DeviceCache(std::move(stream), std::move(cache));
  }
  CudaPagedCache& cache() { return cache_; }
  std::byte* Address(int layer, SequenceId id, int64_t row, int head, bool value) {
    const CacheLayer view = cache_.layer(layer);
    const cuda::CacheSlot slot = cache_.SlotOf(id, row);
    if (view.key == nullptr || slot.page < 0 || head >= view.kv_heads) return nullptr;
    const std::byte* const address = value
                                         ? view.value + slot.row * view.value_row_stride + head * view.value_head_stride
                                         : view.key + slot.row * view.key_row_stride + head * view.key_head_stride;
    return const_cast<std::byte*>(address + slot.page * view.page_stride);
  }
  void Write(std::byte* address, std::vector<std::byte> bytes) {
    const std::vector<std::byte>& kept = written_.emplace_back(std::move(bytes));
    const Status status = CopyAsync(address, kept.data(), static_cast<int64_t>(kept.size()), stream_.handle());
    EXPECT_TRUE(status.ok()) << status;
  }
  std::vector<std::byte> Pool() {
    std::vector<std::byte> pool(cache_.bytes());
    Status status = CopyAsync(pool.data(), cache_.layer(0).key, cache_.bytes(), stream_.handle());
    if (status.ok()) status = stream_.Synchronize("reading the pool");
    EXPECT_TRUE(status.ok()) << status;
    written_.clear();
    return pool;
  }

 private:
  DeviceCache(CudaStream stream, CudaPagedCache cache) : stream_(std::move(stream)), cache_(std::move(cache)) {}
  CudaStream stream_;
  CudaPagedCache cache_;
  std::deque<std::vector<std::byte>> written_;  // copies under way
};
INSTANTIATE_TYPED_TEST_SUITE_P(Device, AnyCache, DeviceCache);

TEST(CudaPagedCache, WithoutMemoryTheRequestAndWhatWasFreeAreNamed) {
  const auto device = CudaDevice::Open(0);
  ASSERT_TRUE(device.ok()) << device.status();
  const auto stream = CudaStream::Create(*device);
  ASSERT_TRUE(stream.ok()) << stream.status();
  const int64_t before = device->FreeBytes().value();
  CacheOptions options{{true, 1, 576, 512, DType::kBFloat16}, 2, 64, 0};
  options.pages = device->total_bytes() / (64 * 576 * 2) + 1;  // of one layer: all there is
  const Status status = CudaPagedCache::Create(options, *device, stream->handle()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(status.message(), absl::StrCat("the cache's pool needs ", options.pages * 64 * 576 * 2 * 2,
                                           " bytes of device memory, but on ", device->ToString(), " ", before, " of ",
                                           device->total_bytes(), " are free"));
  EXPECT_EQ(device->FreeBytes().value(), before);
}

}  // namespace
}  // namespace tessera::testing
