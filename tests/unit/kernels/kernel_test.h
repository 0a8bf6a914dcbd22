// A fixture for tests that run every implementation present, forced one by one.
#pragma once

#include <gtest/gtest.h>

#include "tests/unit/kernels/problem.h"

namespace tessera::testing {

class KernelTest : public ::testing::TestWithParam<const AttentionKernel*> {
 protected:
  const AttentionKernel& kernel() const { return *GetParam(); }
  // `wanted`, or bf16 for a kernel that does not serve it.
  DType Served(DType wanted) const { return Serves(kernel(), wanted) ? wanted : DType::kBFloat16; }
  // A random problem that the kernel serves.
  Problem RandomProblem(Random& random) const {
    return testing::RandomProblem(random,
                                  Serves(kernel(), DType::kFloat32) ? std::nullopt : std::optional(DType::kBFloat16));
  }
};

inline std::string TestName(const ::testing::TestParamInfo<const AttentionKernel*>& info) {
  std::string name(info.param->name());
  for (char& c : name) c = std::isalnum(static_cast<unsigned char>(c)) ? c : '_';
  return name;
}

}  // namespace tessera::testing
