// A world of GPUs for tests under mpirun: one rank, its GPU and its communicators.
#pragma once

#include <gtest/gtest.h>

#include <memory>

#include "collectives/mpi/communicator.h"
#include "collectives/nccl/communicator.h"
#include "runtime/device/cuda/device.h"
#include "runtime/device/cuda/stream.h"

namespace tessera::testing {

// One rank of a world of GPUs.
struct Gpu {
  std::unique_ptr<Communicator> control;
  CudaDevice device;
  CudaStream stream;  // goes after `data`, which holds memory of it for sums
  std::unique_ptr<StreamCommunicator> data;

  static StatusOr<Gpu> Open() {
    TESSERA_ASSIGN_OR_RETURN(std::unique_ptr<Communicator> control, MakeMpiWorld());
    TESSERA_ASSIGN_OR_RETURN(CudaDevice device, OpenDeviceOfRank(*control));
    TESSERA_ASSIGN_OR_RETURN(std::unique_ptr<StreamCommunicator> data, MakeNcclCommunicator(*control, device));
    TESSERA_ASSIGN_OR_RETURN(CudaStream stream, CudaStream::Create(device));
    return Gpu{std::move(control), std::move(device), std::move(stream), std::move(data)};
  }
};

class GpuTest : public ::testing::Test {
 protected:
  // One world for all tests: starting NCCL takes long. It ends before MPI does.
  static void SetUpTestSuite() {
    StatusOr<Gpu> opened = Gpu::Open();
    ASSERT_TRUE(opened.ok()) << opened.status();
    gpu_ = new Gpu(*std::move(opened));
  }
  static void TearDownTestSuite() {
    delete gpu_;
    gpu_ = nullptr;
  }
  static Gpu& gpu() { return *gpu_; }

 private:
  static inline Gpu* gpu_ = nullptr;
};

// The bytes that all ranks received, which stay far below 2^24, so that a float sum is exact.
inline int64_t ReceivedByAll(Gpu& gpu) {
  const auto received = static_cast<float>(gpu.data->traffic().bytes_received);
  float total = 0;
  auto request = gpu.control->AllReduceSum({&received, 1}, {&total, 1});
  EXPECT_TRUE(request.ok() && Wait(*gpu.control, *request, "summing traffic").ok());
  return static_cast<int64_t>(total);
}

}  // namespace tessera::testing
