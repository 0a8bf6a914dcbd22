// Every CUDA implementation of the backward pass against the fp64 oracle, on the problems and judges of the CPU's.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/unit/kernels/backward_problem.h"
#include "tests/unit/kernels/cuda/device_kernel.h"
#include "tests/unit/kernels/cuda/random_problem.h"
#include "tests/unit/kernels/shards.h"

namespace tessera::testing {
namespace {

// Writes the rows of a shard back to where Shard() took them from.
void Unshard(const Tensor& local, const Shards& shards, HeadRange heads, Tensor& whole) {
  for (size_t s = 0; s < shards.segments.size(); ++s) {
    for (int64_t row = 0; row < shards.segments[s].count; ++row) {
      for (int head = heads.begin; head < heads.end; ++head) {
        for (int i = 0; i < whole.view().width; ++i) {
          whole.Set(shards.segments[s].token(row), head, i,
                    local.Get(shards.first_rows[s] + row, head - heads.begin, i));
        }
      }
    }
  }
}

class CudaBackward : public ::testing::TestWithParam<const cuda::BackwardKernel*> {
 protected:
  void SetUp() override {
    const auto preferred = cuda::FindBackwardKernel({DType::kBFloat16, 64, 64, ComputeCapability()});
    ASSERT_TRUE(preferred.ok()) << preferred.status();
    if (*preferred != GetParam()) GTEST_SKIP() << "this device prefers " << (*preferred)->name();
  }
  DeviceKernel kernel() const { return DeviceKernel(*cuda::AttendKernels().back(), *GetParam()); }
};

TEST_P(CudaBackward, RandomProblems) {
  for (int i = 0; i < 200; ++i) {
    const std::string name = absl::StrCat("cuda/backward/", i);
    Random random(name);
    Problem problem = RandomDeviceProblem(random);
    // Beside a large sink the keys that ALiBi leaves get probabilities of 1e-5, which fp16, the type they are
    // multiplied in, holds to 2^-25 only.
    if (problem.dtype == DType::kFloat16 && !problem.slopes.empty()) problem.sinks.clear();
    SCOPED_TRACE(name + ": " + problem.Describe());
    const BackwardProblem backward(kernel(), problem, random);
    const GradientSums sums(problem);
    const Tile tile = WholeTile(problem);
    const Status status = kernel().AttendBackward(BackwardArgsOf(backward, sums, {&tile, 1}));
    ASSERT_TRUE(status.ok()) << status;
    GradientJudge(backward).Expect(RoundGradients(backward, sums));
  }
}

// Shards as tiles, part of the heads: every gradient back to its token and head, what lies between them untouched.
TEST_P(CudaBackward, ShardsWithPartOfTheHeads) {
  for (int i = 0; i < 40; ++i) {
    const std::string name = absl::StrCat("cuda/backward shards/", i);
    Random random(name);
    Problem problem = RandomDeviceProblem(random);
    if (problem.dtype == DType::kFloat16 && !problem.slopes.empty()) problem.sinks.clear();
    SCOPED_TRACE(name + ": " + problem.Describe());
    const BackwardProblem backward(kernel(), problem, random);
    const Shards queries = RandomShards(problem.query_tokens(), random);
    const Shards keys = RandomShards(problem.key_tokens(), random);
    std::vector<Tile> tiles;
    for (size_t q = 0; q < queries.segments.size(); ++q) {
      for (size_t k = 0; k < keys.segments.size(); ++k) {
        tiles.push_back({queries.first_rows[q], queries.segments[q], keys.first_rows[k], keys.segments[k]});
      }
    }
    GradientSums sums(problem);
    // The query heads in two calls, which may both read one key head.
    const int split = static_cast<int>(random.Integer(0, problem.heads()));
    for (const HeadRange heads : {HeadRange{0, split}, HeadRange{split, problem.heads()}}) {
      if (heads.empty()) continue;
      const HeadRange kv_heads{heads.begin / problem.group(), (heads.end - 1) / problem.group() + 1};
      const DType fp32 = DType::kFloat32;
      const Tensor query = Shard(problem.query, queries, heads, problem.dtype, random);
      const Tensor key = Shard(problem.key, keys, kv_heads, problem.dtype, random);
      const Tensor value = Shard(problem.value, keys, kv_heads, problem.dtype, random);
      const Tensor output_gradient = Shard(backward.output_gradient, queries, heads, problem.dtype, random);
      const Tensor lse = Shard(backward.lse, queries, heads, fp32, random);
      const Tensor delta = Shard(backward.delta, queries, heads, fp32, random);
      const Tensor query_gradient = Shard(sums.query, queries, heads, fp32, random);
      const Tensor key_gradient = Shard(sums.key, keys, kv_heads, fp32, random);
      const Tensor value_gradient = Shard(sums.value, keys, kv_heads, fp32, random);
      AttendBackwardArgs args = BackwardArgsOf(backward, sums, tiles);
      args.query = query.view();
      args.key = key.view();
      args.value = value.view();
      args.output_gradient = output_gradient.view();
      args.lse = lse.view();
      args.delta = delta.view();
      args.query_gradient = query_gradient.view();
      args.key_gradient = key_gradient.view();
      args.value_gradient = value_gradient.view();
      args.first_query_head = heads.begin;
      args.first_kv_head = kv_heads.begin;
      if (!problem.slopes.empty()) {
        args.score.alibi_slopes = std::span(problem.slopes).subspan(heads.begin, heads.size());
      }
      const Status status = kernel().AttendBackward(args);
      ASSERT_TRUE(status.ok()) << status;
      Unshard(query_gradient, queries, heads, sums.query);
      Unshard(key_gradient, keys, kv_heads, sums.key);
      Unshard(value_gradient, keys, kv_heads, sums.value);
    }
    GradientJudge(backward).Expect(RoundGradients(backward, sums));
  }
}

TEST_P(CudaBackward, RepeatsBitwise) {
  for (int i = 0; i < 6; ++i) {
    Random random(absl::StrCat("cuda/backward bits/", i));
    const Problem problem = RandomDeviceProblem(random);
    const BackwardProblem backward(kernel(), problem, random);
    const GradientSums first(problem), second(problem);
    const Tile tile = WholeTile(problem);
    ASSERT_TRUE(kernel().AttendBackward(BackwardArgsOf(backward, first, {&tile, 1})).ok());
    ASSERT_TRUE(kernel().AttendBackward(BackwardArgsOf(backward, second, {&tile, 1})).ok());
    EXPECT_TRUE(first.SameBits(second)) << problem.Describe();
  }
}

// A NaN in one key or value changes no bit of the gradients of rows that do not attend it, nor of the other keys they
// attend alone.
TEST_P(CudaBackward, PoisonStaysWithTheRowsThatAttendIt) {
  constexpr int64_t kRows = 80, kKeys = 100, kToken = 70;
  for (bool in_value : {false, true}) {
    for (float poison : {std::nanf(""), INFINITY}) {
      Random random("cuda/backward poison");
      Problem problem = MakeProblem({DType::kBFloat16, kRows, kKeys, 1, 1, 32, 32}, random);
      problem.bands = {{{0, kRows}, {0, kKeys}, -kUnboundedDiagonal, 20}};  // rows from 50 on attend the token
      const BackwardProblem backward(kernel(), problem, random);
      const GradientSums clean(problem), poisoned(problem);
      const Tile tile = WholeTile(problem);
      ASSERT_TRUE(kernel().AttendBackward(BackwardArgsOf(backward, clean, {&tile, 1})).ok());
      (in_value ? problem.value : problem.key).Set(kToken, 0, 5, poison);
      ASSERT_TRUE(kernel().AttendBackward(BackwardArgsOf(backward, poisoned, {&tile, 1})).ok());
      for (int64_t row = 0; row < kRows; ++row) {
        if (row < 50) {
          ASSERT_EQ(poisoned.query.Get(row, 0, 3), clean.query.Get(row, 0, 3)) << row;
        } else if (in_value || std::isnan(poison)) {
          ASSERT_FALSE(std::isfinite(poisoned.query.Get(row, 0, 3))) << row;
        }
      }
      for (int64_t key = 0; key < kKeys; ++key) {
        if (key == kToken) continue;
        ASSERT_EQ(poisoned.key.Get(key, 0, 3), clean.key.Get(key, 0, 3)) << key;
        ASSERT_EQ(poisoned.value.Get(key, 0, 3), clean.value.Get(key, 0, 3)) << key;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Present, CudaBackward,
                         ::testing::ValuesIn(cuda::BackwardKernels().begin(), cuda::BackwardKernels().end()),
                         [](const auto& info) {
                           std::string name(info.param->name());
                           for (char& c : name) c = std::isalnum(static_cast<unsigned char>(c)) ? c : '_';
                           return name;
                         });

}  // namespace
}  // namespace tessera::testing
