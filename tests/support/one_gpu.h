// A test of what one rank does on its GPU: the first one, and a stream of it.
#pragma once

#include <gtest/gtest.h>

#include <optional>

#include "runtime/device/cuda/device.h"
#include "runtime/device/cuda/stream.h"

namespace tessera::testing {

class OneGpuTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto open = [&]() -> Status {
      TESSERA_ASSIGN_OR_RETURN(device_, CudaDevice::Open(0));
      TESSERA_ASSIGN_OR_RETURN(stream_, CudaStream::Create(*device_));
      return absl::OkStatus();
    };
    ASSERT_EQ(open(), absl::OkStatus());
  }

  std::optional<CudaDevice> device_;
  CudaStream stream_;
};

}  // namespace tessera::testing
