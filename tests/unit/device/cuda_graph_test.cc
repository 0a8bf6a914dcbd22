#include <gtest/gtest.h>

#include <vector>

#include "runtime/device/cuda/buffer.h"
#include "runtime/device/cuda/check.h"
#include "runtime/device/cuda/graph.h"
#include "runtime/device/cuda/stream.h"
#include "tests/virtual_gpu/cudart/test_kernels.h"

namespace tessera {
namespace {

constexpr int kCount = 100;
constexpr int64_t kBytes = kCount * sizeof(float);

class CudaGraphTest : public ::testing::Test {
 protected:
  void SetUp() override {
    device_ = CudaDevice::Open(0);
    ASSERT_TRUE(device_.ok()) << device_.status();
    stream_ = CudaStream::Create(*device_);
    side_ = CudaStream::Create(*device_);
    ASSERT_TRUE(stream_.ok() && side_.ok());
    buffer_ = DeviceBuffer::Allocate(*device_, kBytes, "values", stream());
    ASSERT_TRUE(buffer_.ok()) << buffer_.status();
  }
  CUstream_st* stream() { return stream_->handle(); }
  float* values() { return reinterpret_cast<float*>(buffer_->data()); }
  Status Scale(float factor, CUstream_st* stream) {
    return CheckCuda(vgpu::Scale(values(), kCount, factor, stream), "the scale kernel");
  }

  StatusOr<CudaDevice> device_ = absl::UnknownError("");
  StatusOr<CudaStream> stream_ = absl::UnknownError(""), side_ = absl::UnknownError("");
  StatusOr<DeviceBuffer> buffer_ = absl::UnknownError("");
};

TEST_F(CudaGraphTest, LaunchesWhatWasRecordedOnTwoStreams) {
  StatusOr<CudaEvent> fork = CudaEvent::Create(*device_), join = CudaEvent::Create(*device_);
  ASSERT_TRUE(fork.ok() && join.ok());
  StatusOr<CudaGraph> graph = CudaGraph::Capture(stream(), [&]() -> Status {
    EXPECT_TRUE(IsCapturing(stream()).value());
    TESSERA_RETURN_IF_ERROR(Scale(2, stream()));
    TESSERA_RETURN_IF_ERROR(fork->Record(stream()));
    TESSERA_RETURN_IF_ERROR(fork->MakeWait(side_->handle()));
    TESSERA_RETURN_IF_ERROR(Scale(3, side_->handle()));
    TESSERA_RETURN_IF_ERROR(join->Record(side_->handle()));
    return join->MakeWait(stream());
  });
  ASSERT_TRUE(graph.ok()) << graph.status();
  EXPECT_TRUE(*graph);
  EXPECT_FALSE(IsCapturing(stream()).value());
  ASSERT_TRUE(FillAsync(values(), 0, kBytes, stream()).ok());
  ASSERT_TRUE(graph->Launch(stream()).ok());
  ASSERT_TRUE(graph->Launch(stream()).ok());
  std::vector<float> host(kCount);
  ASSERT_TRUE(CopyAsync(host.data(), values(), kBytes, stream()).ok());
  ASSERT_TRUE(stream_->Synchronize("the graph").ok());
  EXPECT_EQ(host, std::vector<float>(kCount, ((0 * 2 + 1) * 3 + 1) * 6 + 4));
}

TEST_F(CudaGraphTest, FailuresLeaveTheStreamUsable) {
  const Status failed =
      CudaGraph::Capture(stream(), [] { return absl::InvalidArgumentError("no such step"); }).status();
  EXPECT_EQ(failed.message(), "no such step");
  const Status waited = CudaGraph::Capture(stream(), [&] { return stream_->Synchronize("itself"); }).status();
  EXPECT_EQ(waited.message(),
            "cudaStreamQuery: operation not permitted when stream is capturing (cudaErrorStreamCaptureUnsupported)");
  const Status allocated = CudaGraph::Capture(stream(), [&] {
                             return DeviceBuffer::Allocate(*device_, 16, "scratch", stream()).status();
                           }).status();
  EXPECT_EQ(allocated.message(),
            "scratch: operation not permitted when stream is capturing (cudaErrorStreamCaptureUnsupported)");
  EXPECT_FALSE(IsCapturing(stream()).value());
  ASSERT_TRUE(Scale(1, stream()).ok());
  EXPECT_TRUE(stream_->Synchronize("the kernel").ok());
}

}  // namespace
}  // namespace tessera
