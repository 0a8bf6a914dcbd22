// Machines that cannot serve: what runtime/device/cuda says about them. ctest runs each group on the machine it is for,
// by its filter; see CMakeLists.txt.
#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "runtime/device/cuda/buffer.h"
#include "runtime/device/cuda/check.h"
#include "runtime/device/cuda/device.h"
#include "runtime/device/cuda/stream.h"
#include "tests/virtual_gpu/cudart/test_kernels.h"

namespace tessera {
namespace {

void ExpectRefusal(const Status& status, std::string_view text) {
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
  EXPECT_EQ(status.message(), std::string(text));
}

TEST(NoDriver, SaysSo) {
  const std::string_view text =
      "looking for GPUs: CUDA driver version is insufficient for CUDA runtime version (cudaErrorInsufficientDriver); "
      "this machine has no NVIDIA driver";
  ExpectRefusal(CudaDevice::Count().status(), text);
  ExpectRefusal(CudaDevice::Open(0).status(), text);
}

TEST(NoGpu, SaysSo) {
  ExpectRefusal(CudaDevice::Open(0).status(),
                "looking for GPUs: no CUDA-capable device is detected (cudaErrorNoDevice)");
}

TEST(OldGpu, NamesWhatTheBinaryHas) {
  ExpectRefusal(CudaDevice::Open(0).status(),
                "GPU 0 (virtual GPU 7.5, 7.5): compute capability 7.5 is not served: this build has code for " +
                    std::string(TESSERA_TEST_ARCHITECTURES) + "; build with -DTESSERA_CUDA_ARCHITECTURES=75");
}

TEST(SeveralGpus, AreOpenedByIndex) {
  ASSERT_EQ(CudaDevice::Count().value(), 3);
  std::vector<std::array<uint8_t, 16>> uuids;
  for (int i = 0; i < 3; ++i) {
    const StatusOr<CudaDevice> device = CudaDevice::Open(i);
    ASSERT_TRUE(device.ok()) << device.status();
    EXPECT_EQ(device->index(), i);
    for (const auto& other : uuids) EXPECT_NE(other, device->uuid());
    uuids.push_back(device->uuid());
    // Memory of one GPU is not taken from another.
    StatusOr<CudaStream> stream = CudaStream::Create(*device);
    ASSERT_TRUE(stream.ok()) << stream.status();
    const StatusOr<DeviceBuffer> buffer = DeviceBuffer::Allocate(*device, 1000, "x", stream->handle());
    ASSERT_TRUE(buffer.ok()) << buffer.status();
    EXPECT_EQ(device->FreeBytes().value(), device->total_bytes() - 1000);
  }
  EXPECT_EQ(CudaDevice::Open(3).status().message(), "GPU 3 does not exist: this process sees 3 GPUs");
}

// An asynchronous fault: the launch succeeds, the first call that learns of it names it, and every later call says the
// same.
TEST(Fault, TheFirstErrorStays) {
  StatusOr<CudaDevice> device = CudaDevice::Open(0);
  ASSERT_TRUE(device.ok()) << device.status();
  StatusOr<CudaStream> stream = CudaStream::Create(*device);
  ASSERT_TRUE(stream.ok()) << stream.status();
  StatusOr<DeviceBuffer> buffer = DeviceBuffer::Allocate(*device, 400, "x", stream->handle());
  ASSERT_TRUE(buffer.ok()) << buffer.status();
  EXPECT_TRUE(DeviceFault().ok());
  // The launch must not find the fault of its own kernel.
  const auto pause = [](void*) { std::this_thread::sleep_for(std::chrono::milliseconds(50)); };
  EXPECT_EQ(cudaLaunchHostFunc(stream->handle(), pause, nullptr), cudaSuccess);
  EXPECT_EQ(vgpu::WriteAt(reinterpret_cast<float*>(buffer->data()), 100, stream->handle()), cudaSuccess);

  const Status first = stream->Synchronize("a kernel");
  EXPECT_EQ(first.code(), absl::StatusCode::kInternal);
  EXPECT_EQ(first.message(),
            "the GPU faulted; seen by cudaStreamQuery: an illegal memory access was encountered "
            "(cudaErrorIllegalAddress). The cause is this call or work submitted before it; the CUDA context of this "
            "process is lost");
  std::vector<char> host(400);
  StatusOr<CudaEvent> event = CudaEvent::Create(*device);
  EXPECT_EQ(event.status(), first);
  EXPECT_EQ(DeviceFault(), first);
  EXPECT_EQ(CudaDevice::Open(0).status(), first);
  EXPECT_EQ(DeviceBuffer::Allocate(*device, 400, "y", stream->handle()).status(), first);
  EXPECT_EQ(CopyAsync(host.data(), buffer->data(), 400, stream->handle()), first);
  EXPECT_EQ(stream->Synchronize("the rest"), first);
  EXPECT_EQ(stream->Done().status(), first);
  EXPECT_EQ(CheckLaunch("a kernel"), first);
  EXPECT_EQ(device->FreeBytes().status(), first);

  ASSERT_EQ(cudaDeviceReset(), cudaSuccess);
  ForgetDeviceFault();
  EXPECT_TRUE(CudaDevice::Open(0).ok());
  EXPECT_EQ(device->FreeBytes().value(), device->total_bytes());  // nothing leaked
}

}  // namespace
}  // namespace tessera
