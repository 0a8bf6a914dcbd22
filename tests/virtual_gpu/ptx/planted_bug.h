// A bug and its right twin: the twin passes, the bug is found and named.
#pragma once

#include <gtest/gtest.h>

#include "tests/virtual_gpu/ptx/ptx_runner.h"

namespace tessera::vgpu {

struct BugCase {
  std::string name;
  std::string right, wrong;  // bodies for KernelText: p0 holds 4096 words, word i being i; blocks of 128 threads
  FaultKind kind;
  std::string message;  // part of it
};

inline void PrintTo(const BugCase& test, std::ostream* out) {
  *out << test.name;
}

inline RunResult RunBody(const std::string& body) {
  Device device;
  std::vector<uint32_t> words(4096);
  for (size_t i = 0; i < words.size(); ++i) words[i] = static_cast<uint32_t>(i);
  uint32_t* buffer = device.Buffer(words);
  return device.Run(KernelText(body, 1, ".extern .shared .align 1024 .b8 smem[];"), {buffer}, {}, {128, 1, 1}, 4096);
}

inline void ExpectFoundAndTwinPasses(const BugCase& test) {
  const RunResult right = RunBody(test.right);
  ASSERT_EQ(right.parse_error, "");
  EXPECT_FALSE(right.fault.has_value()) << right.fault->message;
  EXPECT_NE(test.right, test.wrong);
  const RunResult wrong = RunBody(test.wrong);
  ASSERT_EQ(wrong.parse_error, "");
  ASSERT_TRUE(wrong.fault.has_value());
  EXPECT_STREQ(Name(wrong.fault->kind), Name(test.kind)) << wrong.fault->message;
  EXPECT_NE(wrong.fault->message.find(test.message), std::string::npos) << wrong.fault->message;
}

// The first occurrence of a part removed or replaced.
inline std::string With(std::string body, const std::string& from, const std::string& to) {
  const size_t at = body.find(from);
  if (at != std::string::npos) body.replace(at, from.size(), to);
  return body;
}
inline std::string Without(const std::string& body, const std::string& part) {
  return With(body, part, "");
}

}  // namespace tessera::vgpu
