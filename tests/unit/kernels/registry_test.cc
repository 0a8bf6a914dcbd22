// Choosing an implementation, and what every implementation refuses.
#include <gtest/gtest.h>

#include <functional>

#include "tests/unit/kernels/backward_problem.h"

namespace tessera::testing {
namespace {

TEST(Registry, ReferenceIsLastAndServesEverything) {
  const auto kernels = AttentionKernels();
  ASSERT_GE(kernels.size(), 2u);
  EXPECT_EQ(kernels.back()->name(), "reference");
  EXPECT_EQ(kernels.back()->WhyNot({DType::kFloat16, 5000, 1}), "");
}

TEST(Registry, AutoIsTheFirstThatServes) {
  const AttentionTraits traits{DType::kBFloat16, 128, 128};
  for (std::string_view name : {"", "auto"}) {
    const auto kernel = FindAttentionKernel(traits, name);
    ASSERT_TRUE(kernel.ok()) << kernel.status();
    EXPECT_EQ(*kernel, PresentKernels().front());
  }
}

TEST(Registry, EveryPresentKernelIsFoundByName) {
  for (const AttentionKernel* kernel : PresentKernels()) {
    const auto found = FindAttentionKernel({DType::kBFloat16, 64, 64}, kernel->name());
    ASSERT_TRUE(found.ok()) << found.status();
    EXPECT_EQ(*found, kernel);
  }
}

TEST(Registry, RefusalNamesEveryImplementation) {
  const auto unknown = FindAttentionKernel({DType::kFloat32, 64, 64}, "gpu");
  ASSERT_EQ(unknown.status().code(), absl::StatusCode::kNotFound);
  const auto impossible = FindAttentionKernel({DType::kFloat32, 0, 64});
  ASSERT_EQ(impossible.status().code(), absl::StatusCode::kNotFound);
  for (const AttentionKernel* kernel : AttentionKernels()) {
    const std::string name(kernel->name());
    EXPECT_NE(unknown.status().message().find(name + ": not the one asked for"), std::string::npos);
    EXPECT_NE(impossible.status().message().find("\n  " + name + ": "), std::string::npos);
  }
}

TEST(Registry, AbsentInstructionSetsSayWhyAndRefuseToRun) {
  Random random("absent");
  Problem problem = MakeProblem({DType::kBFloat16, 2, 2, 1, 1, 4, 4}, random);
  const Partials partials(2, 1, 4);
  for (const AttentionKernel* kernel : AttentionKernels()) {
    const std::string reason = kernel->WhyNot({DType::kBFloat16, 64, 64});
    if (reason.empty()) continue;
    EXPECT_TRUE(reason.starts_with("this processor ")) << reason;
    EXPECT_EQ(kernel->Attend(ArgsOf(problem, partials, {})).code(), absl::StatusCode::kFailedPrecondition);
  }
}

TEST(Registry, KernelsOfOneDTypeSaySo) {
  for (const AttentionKernel* kernel : PresentKernels()) {
    if (Serves(*kernel, DType::kFloat16)) continue;
    EXPECT_EQ(kernel->WhyNot({DType::kFloat16, 64, 64}), "it multiplies bf16, not fp16") << kernel->name();
    EXPECT_EQ(kernel->WhyNot({DType::kBFloat16, 64, 1025}), "head widths must lie in [1, 1024]") << kernel->name();
  }
}

// The tests of this folder run every kernel that is present; here is why AMX is not among them.
TEST(Registry, AmxIsPresentOrSaysWhyNot) {
  for (const AttentionKernel* kernel : AttentionKernels()) {
    if (kernel->name() != "cpu-amx") continue;
    EXPECT_EQ(kernel, AttentionKernels().front());
    const std::string reason = kernel->WhyNot({DType::kBFloat16, 64, 64});
    if (!reason.empty()) GTEST_SKIP() << reason << "; its packing, masks and softmax are tested on tiles in software";
    return;
  }
  GTEST_SKIP() << "cpu-amx is not compiled in";
}

TEST(Attend, RefusesWhatItCannotRead) {
  Random random("refusals");
  const Problem problem = MakeProblem({DType::kBFloat16, 4, 6, 4, 2, 8, 8}, random);
  const Partials partials(4, 4, 8);
  const Tile tile = WholeTile(problem);
  const float slopes[] = {1.0f};
  const std::pair<const char*, std::function<void(AttendArgs&)>> cases[] = {
      {"every tensor must be in host memory", [](AttendArgs& a) { a.key.space = MemorySpace::kDevice; }},
      {"share one dtype", [](AttendArgs& a) { a.value.dtype = DType::kFloat16; }},
      {"output and LSE must be fp32", [](AttendArgs& a) { a.output.dtype = DType::kBFloat16; }},
      {"head widths must be at least 1", [](AttendArgs& a) { a.query.width = 0; }},
      {"key width 7 differs from query width 8", [](AttendArgs& a) { a.key.width = 7; }},
      {"output must be as wide as value", [](AttendArgs& a) { a.output.width = 7; }},
      {"key and value must agree", [](AttendArgs& a) { a.value.rows = 5; }},
      {"output and LSE must agree with query", [](AttendArgs& a) { a.lse.rows = 3; }},
      {"group must be positive", [](AttendArgs& a) { a.group = 0; }},
      {"read key heads outside", [](AttendArgs& a) { a.group = 1; }},
      {"query rows [1, 5) are outside the tensor's 4",
       [](AttendArgs& a) {
         static const Tile outside{1, {0, 4, 1}, 0, {0, 6, 1}};
         a.tiles = {&outside, 1};
       }},
      {"key segment needs count >= 0 and stride >= 1",
       [](AttendArgs& a) {
         static const Tile still{0, {0, 4, 1}, 0, {0, 6, 0}};
         a.tiles = {&still, 1};
       }},
      {"1 ALiBi slopes for 4 query heads", [&](AttendArgs& a) { a.score.alibi_slopes = slopes; }},
      {"threads must be at least 1", [](AttendArgs& a) { a.threads = 0; }},
  };
  for (const AttentionKernel* kernel : PresentKernels()) {
    for (const auto& [text, damage] : cases) {
      AttendArgs args = ArgsOf(problem, partials, {&tile, 1});
      damage(args);
      const Status status = kernel->Attend(args);
      EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
      EXPECT_NE(status.message().find(text), std::string_view::npos) << status.message();
    }
  }
}

TEST(AttendBackward, RefusesWhatItCannotRead) {
  Random random("backward refusals");
  const Problem problem = MakeProblem({DType::kBFloat16, 4, 6, 4, 2, 8, 8}, random);
  const BackwardProblem backward(*PresentKernels().front(), problem, random);
  const GradientSums sums(problem);
  const Tile tile = WholeTile(problem);
  const std::pair<const char*, std::function<void(AttendBackwardArgs&)>> cases[] = {
      {"every tensor must be in host memory", [](AttendBackwardArgs& a) { a.delta.space = MemorySpace::kDevice; }},
      {"share one dtype", [](AttendBackwardArgs& a) { a.output_gradient.dtype = DType::kFloat32; }},
      {"gradients added to must be fp32", [](AttendBackwardArgs& a) { a.key_gradient.dtype = DType::kFloat16; }},
      {"key width 7 differs from query width 8", [](AttendBackwardArgs& a) { a.key.width = 7; }},
      {"output gradient must be as wide as value", [](AttendBackwardArgs& a) { a.output_gradient.width = 7; }},
      {"gradients must be as wide as", [](AttendBackwardArgs& a) { a.value_gradient.width = 7; }},
      {"key, value and their gradients must agree", [](AttendBackwardArgs& a) { a.key_gradient.rows = 5; }},
      {"must agree with query in rows and heads", [](AttendBackwardArgs& a) { a.query_gradient.rows = 3; }},
      {"read key heads outside", [](AttendBackwardArgs& a) { a.group = 1; }},
      {"threads must be at least 1", [](AttendBackwardArgs& a) { a.threads = 0; }},
  };
  for (const AttentionKernel* kernel : PresentKernels()) {
    for (const auto& [text, damage] : cases) {
      AttendBackwardArgs args = BackwardArgsOf(backward, sums, {&tile, 1});
      damage(args);
      const Status status = kernel->AttendBackward(args);
      EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
      EXPECT_NE(status.message().find(std::string("attend backward: ")), std::string_view::npos) << status.message();
      EXPECT_NE(status.message().find(text), std::string_view::npos) << status.message();
    }
  }
}

}  // namespace
}  // namespace tessera::testing
