// Streams, events, buffers and copies of runtime/device/cuda.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <thread>
#include <vector>

#include "runtime/device/cuda/buffer.h"
#include "runtime/device/cuda/check.h"
#include "runtime/device/cuda/device.h"
#include "runtime/device/cuda/stream.h"

namespace tessera {
namespace {

using namespace std::chrono_literals;

constexpr int64_t kMiB = 1 << 20;
constexpr int64_t kTotalBytes = 256 * kMiB;  // VGPU_MEMORY_BYTES in CMakeLists.txt

class CudaDeviceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    StatusOr<CudaDevice> device = CudaDevice::Open(0);
    ASSERT_TRUE(device.ok()) << device.status();
    device_.emplace(*std::move(device));
    StatusOr<CudaStream> stream = CudaStream::Create(*device_);
    ASSERT_TRUE(stream.ok()) << stream.status();
    stream_.emplace(*std::move(stream));
  }
  void Ok(const Status& status) { ASSERT_TRUE(status.ok()) << status; }
  CUstream_st* stream() { return stream_->handle(); }
  DeviceBuffer Buffer(int64_t bytes) {
    StatusOr<DeviceBuffer> buffer = DeviceBuffer::Allocate(*device_, bytes, "a test", stream());
    EXPECT_TRUE(buffer.ok()) << buffer.status();
    return *std::move(buffer);
  }

  std::optional<CudaDevice> device_;
  std::optional<CudaStream> stream_;
};

TEST_F(CudaDeviceTest, SaysWhatItIs) {
  EXPECT_EQ(device_->index(), 0);
  EXPECT_EQ(device_->name(), "virtual GPU " + device_->capability().ToString());
  EXPECT_EQ(device_->ToString(), "GPU 0 (" + device_->name() + ", " + device_->capability().ToString() + ")");
  EXPECT_EQ(device_->multiprocessors(), device_->capability().major == 8 ? 108 : 132);
  EXPECT_EQ(device_->shared_bytes_per_block(), device_->capability().major == 8 ? 166912 : 232448);
  EXPECT_EQ(device_->pci_bus_id(), "0000:01:00.0");
  EXPECT_EQ(device_->total_bytes(), kTotalBytes);
  EXPECT_EQ(device_->FreeBytes().value(), kTotalBytes);
  EXPECT_NE(device_->uuid(), (std::array<uint8_t, 16>{}));
}

TEST_F(CudaDeviceTest, CopiesThereAndBack) {
  for (const int64_t bytes : {1, 255, 4096, 1'000'003}) {
    std::vector<uint8_t> sent(bytes), received(bytes);
    std::iota(sent.begin(), sent.end(), uint8_t{3});
    DeviceBuffer a = Buffer(bytes), b = Buffer(bytes);
    Ok(CopyAsync(a.data(), sent.data(), bytes, stream()));
    Ok(CopyAsync(b.data(), a.data(), bytes, stream()));
    Ok(CopyAsync(received.data(), b.data(), bytes, stream()));
    Ok(stream_->Synchronize("copies"));
    EXPECT_EQ(received, sent);
  }
  EXPECT_EQ(device_->FreeBytes().value(), kTotalBytes);
}

TEST_F(CudaDeviceTest, CopiesRowsWithPitches) {
  constexpr int64_t kRows = 7, kRowBytes = 12, kFrom = 20, kTo = 16;
  std::vector<uint8_t> sent(kRows * kFrom), received(kRows * kTo, 9), expected = received;
  std::iota(sent.begin(), sent.end(), uint8_t{0});
  for (int64_t r = 0; r < kRows; ++r) std::memcpy(&expected[r * kTo], &sent[r * kFrom], kRowBytes);
  DeviceBuffer buffer = Buffer(kRows * kTo);
  Ok(FillAsync(buffer.data(), 9, kRows * kTo, stream()));
  Ok(CopyRowsAsync(buffer.data(), kTo, sent.data(), kFrom, kRowBytes, kRows, stream()));
  Ok(CopyAsync(received.data(), buffer.data(), kRows * kTo, stream()));
  Ok(stream_->Synchronize("rows"));
  EXPECT_EQ(received, expected);
  EXPECT_EQ(CopyRowsAsync(buffer.data(), 8, sent.data(), kFrom, kRowBytes, 1, stream()).message(),
            "rows of 12 bytes do not fit pitches of 8 and 20");
}

TEST_F(CudaDeviceTest, EventsOrderStreams) {
  constexpr int64_t kBytes = 1 << 20;
  StatusOr<CudaStream> other = CudaStream::Create(*device_, CudaStream::Priority::kHigh);
  StatusOr<CudaEvent> filled = CudaEvent::Create(*device_), copied = CudaEvent::Create(*device_);
  ASSERT_TRUE(other.ok() && filled.ok() && copied.ok());
  EXPECT_TRUE(filled->Done().value());  // nothing was recorded
  DeviceBuffer buffer = Buffer(kBytes);
  std::vector<uint8_t> received(kBytes);
  for (int round = 0; round < 20; ++round) {
    Ok(FillAsync(buffer.data(), static_cast<uint8_t>(round), kBytes, stream()));
    Ok(filled->Record(stream()));
    Ok(filled->MakeWait(other->handle()));
    Ok(CopyAsync(received.data(), buffer.data(), kBytes, other->handle()));
    Ok(copied->Record(other->handle()));
    Ok(copied->MakeWait(stream()));
    Ok(copied->Synchronize("a copy"));
    EXPECT_EQ(received, std::vector<uint8_t>(kBytes, static_cast<uint8_t>(round)));
  }
  EXPECT_TRUE(copied->Done().value());
  EXPECT_TRUE(other->Done().value());
}

TEST_F(CudaDeviceTest, WhatWasSubmittedIsWaitedForWithADeadline) {
  constexpr int64_t kBytes = 128 * kMiB;
  DeviceBuffer buffer = Buffer(kBytes);
  std::vector<uint8_t> received(kBytes);
  // Fills of 2 GiB take longer than a millisecond on any CPU.
  for (int i = 0; i < 16; ++i) Ok(FillAsync(buffer.data(), static_cast<uint8_t>(i), kBytes, stream()));
  Ok(CopyAsync(received.data(), buffer.data(), kBytes, stream()));
  const Status status = WaitForSubmitted(*device_, stream(), "the last fill", 1ms);
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(status.message(), "the last fill has not finished on the GPU within 1 ms");
  Ok(WaitForSubmitted(*device_, stream(), "the copy"));
  EXPECT_TRUE(std::all_of(received.begin(), received.end(), [](uint8_t byte) { return byte == 15; }));
}

TEST_F(CudaDeviceTest, TimedEventsMeasure) {
  StatusOr<CudaEvent> begin = CudaEvent::Create(*device_, true), end = CudaEvent::Create(*device_, true);
  ASSERT_TRUE(begin.ok() && end.ok());
  Ok(begin->Record(stream()));
  Ok(end->Record(stream()));
  Ok(end->Synchronize("the end"));
  EXPECT_GE(CudaEvent::Seconds(*begin, *end).value(), 0);
}

TEST_F(CudaDeviceTest, OutOfMemoryNamesRequestAndRestAndLeaksNothing) {
  DeviceBuffer held = Buffer(64 * kMiB);
  for (int repeat = 0; repeat < 3; ++repeat) {
    const StatusOr<DeviceBuffer> refused = DeviceBuffer::Allocate(*device_, 192 * kMiB + 1, "slot 4", stream());
    EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
    EXPECT_EQ(refused.status().message(), "slot 4 needs 201326593 bytes of device memory, but on " +
                                              device_->ToString() + " 201326592 of 268435456 are free");
  }
  // The refusal is not left behind for the next call to find.
  Ok(CheckLaunch("nothing"));
  held = Buffer(192 * kMiB);
  EXPECT_EQ(device_->FreeBytes().value(), 64 * kMiB);
}

TEST_F(CudaDeviceTest, PinnedMemory) {
  StatusOr<PinnedBuffer> pinned = PinnedBuffer::Allocate(*device_, 1000, "staging");
  ASSERT_TRUE(pinned.ok()) << pinned.status();
  std::memset(pinned->data(), 7, 1000);
  DeviceBuffer buffer = Buffer(1000);
  std::vector<uint8_t> received(1000);
  Ok(CopyAsync(buffer.data(), pinned->data(), 1000, stream()));
  Ok(CopyAsync(received.data(), buffer.data(), 1000, stream()));
  Ok(stream_->Synchronize("pinned"));
  EXPECT_EQ(received, std::vector<uint8_t>(1000, 7));
}

TEST_F(CudaDeviceTest, RefusalsSayWhy) {
  EXPECT_EQ(DeviceBuffer::Allocate(*device_, -1, "x", stream()).status().message(),
            "bytes is -1; it must not be negative");
  EXPECT_EQ(PinnedBuffer::Allocate(*device_, -1, "x").status().message(), "bytes is -1; it must not be negative");
  EXPECT_EQ(CopyAsync(nullptr, nullptr, -1, stream()).message(), "bytes is -1; it must not be negative");
  EXPECT_EQ(CudaDevice::Open(3).status().message(), "GPU 3 does not exist: this process sees 1 GPU");
  EXPECT_EQ(CudaDevice::Open(-1).status().code(), absl::StatusCode::kInvalidArgument);
  DeviceBuffer buffer = Buffer(16);
  std::vector<uint8_t> host(32);
  EXPECT_EQ(CopyAsync(buffer.data(), host.data(), 17, stream()).message(),
            "cudaMemcpyAsync: invalid argument (cudaErrorInvalidValue)");
  EXPECT_EQ(FillAsync(host.data(), 0, 17, stream()).message(),
            "cudaMemsetAsync: invalid argument (cudaErrorInvalidValue)");
}

TEST_F(CudaDeviceTest, WaitsHaveADeadline) {
  // Fills of 2 GiB take longer than a millisecond on any CPU.
  DeviceBuffer buffer = Buffer(128 * kMiB);
  for (int i = 0; i < 16; ++i) Ok(FillAsync(buffer.data(), 0, 128 * kMiB, stream()));
  const Status status = stream_->Synchronize("the row of fills", 1ms);
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(status.message(), "the row of fills has not finished on the GPU within 1 ms");
  Ok(stream_->Synchronize("the fills"));
}

TEST(BuiltFor, NewerDevicesTakeOlderPtxButNotSpecificCode) {
  EXPECT_EQ(WhyNotBuiltFor({8, 0}, {"80", "90a"}), "");
  EXPECT_EQ(WhyNotBuiltFor({8, 9}, {"80", "90a"}), "");
  EXPECT_EQ(WhyNotBuiltFor({12, 0}, {"80", "90a"}), "");
  EXPECT_EQ(WhyNotBuiltFor({9, 0}, {"90a"}), "");
  EXPECT_EQ(WhyNotBuiltFor({10, 0}, {"90a"}),
            "compute capability 10.0 is not served: this build has code for 90a; build with "
            "-DTESSERA_CUDA_ARCHITECTURES=100");
  EXPECT_EQ(WhyNotBuiltFor({7, 5}, {"80", "90a"}),
            "compute capability 7.5 is not served: this build has code for 80, 90a; build with "
            "-DTESSERA_CUDA_ARCHITECTURES=75");
}

}  // namespace
}  // namespace tessera
