// The tests that every communicator passes. A test program links conformance*.cc and instantiates the suite with
// worlds.
#pragma once

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "tests/support/ranks.h"

namespace tessera::testing {

class Conformance : public ::testing::TestWithParam<World> {
 protected:
  void Run(const RankProgram& program) {
    const Status status = GetParam().run(program);
    EXPECT_TRUE(status.ok()) << status;
  }
};

// Bytes that tell sender, stream and position apart.
inline std::vector<std::byte> Pattern(int64_t length, int sender, int stream = 0) {
  std::vector<std::byte> bytes(length);
  for (int64_t i = 0; i < length; ++i) bytes[i] = static_cast<std::byte>(i * 31 + sender * 7 + stream * 13 + (i >> 8));
  return bytes;
}

}  // namespace tessera::testing
