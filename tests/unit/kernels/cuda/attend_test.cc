// Every CUDA implementation of forward attention against the fp64 oracle, on the problems and judges of the CPU's.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "tests/unit/kernels/cuda/device_kernel.h"
#include "tests/unit/kernels/cuda/random_problem.h"
#include "tests/unit/kernels/shards.h"

namespace tessera::testing {
namespace {

class CudaAttention : public ::testing::TestWithParam<const cuda::AttendKernel*> {
 protected:
  void SetUp() override {
    const auto preferred = cuda::FindAttendKernel({DType::kBFloat16, 64, 64, ComputeCapability()});
    ASSERT_TRUE(preferred.ok()) << preferred.status();
    if (*preferred != GetParam()) GTEST_SKIP() << "this device prefers " << (*preferred)->name();
  }
  DeviceKernel kernel() const { return DeviceKernel(*GetParam()); }
};

TEST_P(CudaAttention, RandomProblems) {
  for (int i = 0; i < 240; ++i) {
    const std::string name = absl::StrCat("cuda/random/", i);
    Random random(name);
    const Problem problem = RandomDeviceProblem(random);
    SCOPED_TRACE(name + ": " + problem.Describe());
    ExpectAccurate(problem, Compute(kernel(), problem));
  }
}

// Shards as tiles: rows at any offset, strided segments, part of the heads, elements outside untouched.
TEST_P(CudaAttention, ShardsWithPartOfTheHeads) {
  for (int i = 0; i < 60; ++i) {
    const std::string name = absl::StrCat("cuda/shards/", i);
    Random random(name);
    Problem problem = RandomDeviceProblem(random);
    // An LSE of 1e4 is known between tiles to 5e-4 only, which no implementation of the interface can undo.
    if (std::abs(problem.score.scale) > 10.0f) problem.score.scale = 0.1f;
    SCOPED_TRACE(name + ": " + problem.Describe());
    const Shards queries = RandomShards(problem.query_tokens(), random);
    const Shards keys = RandomShards(problem.key_tokens(), random);
    HeadRange heads{static_cast<int>(random.Integer(0, problem.heads() - 1)), problem.heads()};
    const HeadRange kv_heads{heads.begin / problem.group(), (heads.end - 1) / problem.group() + 1};
    const Tensor query = Shard(problem.query, queries, heads, problem.dtype, random);
    const Tensor key = Shard(problem.key, keys, kv_heads, problem.dtype, random);
    const Tensor value = Shard(problem.value, keys, kv_heads, problem.dtype, random);
    Tensor output(DType::kFloat32, queries.rows, heads.size(), problem.v_width(), &random);
    Tensor lse(DType::kFloat32, queries.rows, heads.size(), 1, &random);
    std::vector<Tile> tiles;
    for (size_t q = 0; q < queries.segments.size(); ++q) {
      for (int64_t row = 0; row < queries.segments[q].count; ++row) {
        for (int head = 0; head < heads.size(); ++head) {
          for (int c = 0; c < problem.v_width(); ++c) output.Set(queries.first_rows[q] + row, head, c, 0.0f);
          lse.Set(queries.first_rows[q] + row, head, 0, -INFINITY);
        }
      }
      for (size_t k = 0; k < keys.segments.size(); ++k) {
        tiles.push_back({queries.first_rows[q], queries.segments[q], keys.first_rows[k], keys.segments[k]});
      }
    }
    // Rows that overlap those of other tiles without being equal to them.
    if (tiles.size() > 1 && tiles[0].queries.count > 1) {
      Tile first = tiles[0], second = tiles[0];
      first.queries.count /= 2;
      second.query_row += first.queries.count;
      second.queries = Rows(second.queries, {first.queries.count, second.queries.count});
      tiles.erase(tiles.begin());
      tiles.push_back(first);
      tiles.push_back(second);
    }
    Tensor expected = output;
    AttendArgs args;
    args.query = query.view();
    args.key = key.view();
    args.value = value.view();
    args.output = output.view();
    args.lse = lse.view();
    args.tiles = tiles;
    args.bands = problem.bands;
    args.first_query_head = heads.begin;
    args.first_kv_head = kv_heads.begin;
    args.group = problem.group();
    args.score = problem.score;
    if (!problem.slopes.empty()) args.score.alibi_slopes = std::span(problem.slopes).subspan(heads.begin, heads.size());
    const Status status = kernel().Attend(args);
    ASSERT_TRUE(status.ok()) << status;

    // Every row back to its token, heads outside the call from a whole run.
    Partials partials(problem.query_tokens(), problem.heads(), problem.v_width());
    const Tile whole = WholeTile(problem);
    ASSERT_TRUE(kernel().Attend(ArgsOf(problem, partials, {&whole, 1})).ok());
    for (size_t q = 0; q < queries.segments.size(); ++q) {
      for (int64_t row = 0; row < queries.segments[q].count; ++row) {
        const int64_t token = queries.segments[q].token(row), at = queries.first_rows[q] + row;
        for (int head = 0; head < heads.size(); ++head) {
          for (int c = 0; c < problem.v_width(); ++c) {
            partials.output.Set(token, head + heads.begin, c, output.Get(at, head, c));
            expected.Set(at, head, c, output.Get(at, head, c));
          }
          partials.lse.Set(token, head + heads.begin, 0, lse.Get(at, head, 0));
        }
      }
    }
    ExpectAccurate(problem, Finish(problem, partials));
    EXPECT_EQ(std::memcmp(output.bytes().data(), expected.bytes().data(), output.bytes().size()), 0)
        << "elements outside the tiles were written";
  }
}

TEST_P(CudaAttention, SeveralCallsEqualOne) {
  for (int i = 0; i < 20; ++i) {
    const std::string name = absl::StrCat("cuda/calls/", i);
    Random random(name);
    Problem problem = RandomDeviceProblem(random);
    if (std::abs(problem.score.scale) > 10.0f) problem.score.scale = 0.1f;
    SCOPED_TRACE(name + ": " + problem.Describe());
    Partials folded(problem.query_tokens(), problem.heads(), problem.v_width());
    for (int64_t begin = 0; begin < problem.key_tokens();) {
      Tile tile = WholeTile(problem);
      tile.key_row = begin;
      tile.keys = {begin, std::min(problem.key_tokens() - begin, random.Integer(1, 100)), 1};
      ASSERT_TRUE(kernel().Attend(ArgsOf(problem, folded, {&tile, 1})).ok());
      begin += tile.keys.count;
    }
    ExpectAccurate(problem, Finish(problem, folded));
  }
}

TEST_P(CudaAttention, LongRowsLoseNothing) {
  Random random("cuda/long");
  Problem problem = MakeProblem({DType::kBFloat16, 2, 9000, 1, 1, 64, 64}, random);
  problem.bands = {{{0, 2}, {0, 9000}}};
  ExpectAccurate(problem, Compute(kernel(), problem));
}

TEST_P(CudaAttention, RowsThatSeeNothingKeepTheirPartialBitForBit) {
  Random random("cuda/kept");
  Problem problem = MakeProblem({DType::kBFloat16, 30, 80, 2, 2, 16, 16}, random);
  problem.bands = {{{10, 20}, {0, 80}}};
  Partials partials(30, 2, 16);
  partials.output.FillNormal(random, 1.0f);
  partials.lse.FillNormal(random, 1.0f);
  const Partials before = partials;
  const Tile tile = WholeTile(problem);
  ASSERT_TRUE(kernel().Attend(ArgsOf(problem, partials, {&tile, 1})).ok());
  for (int64_t row = 0; row < 30; ++row) {
    const bool seen = row >= 10 && row < 20;
    EXPECT_EQ(partials.lse.Get(row, 1, 0) != before.lse.Get(row, 1, 0), seen) << row;
    EXPECT_EQ(partials.output.Get(row, 1, 3) != before.output.Get(row, 1, 3), seen) << row;
  }
}

TEST_P(CudaAttention, NoKeysNoBandsNoRows) {
  Random random("cuda/nothing");
  Problem no_keys = MakeProblem({DType::kFloat16, 5, 0, 2, 1, 8, 8}, random);
  no_keys.bands = {{{0, 5}, {0, 10}}};
  Problem empty_bands = MakeProblem({DType::kBFloat16, 5, 70, 2, 1, 8, 8}, random);
  empty_bands.bands = {{{2, 2}, {0, 70}}, {{0, 5}, {7, 7}}, {{0, 5}, {0, 70}, 3, 2}};
  for (const Problem* problem : {&no_keys, &empty_bands}) {
    const Result result = Compute(kernel(), *problem);
    for (double o : result.output) EXPECT_EQ(o, 0.0);
    for (double lse : result.lse) EXPECT_EQ(lse, -INFINITY);
  }
  Problem no_rows = MakeProblem({DType::kBFloat16, 0, 70, 2, 1, 8, 8}, random);
  EXPECT_TRUE(Compute(kernel(), no_rows).output.empty());
}

// NaN and infinity in one key or value reach the rows that attend it, and no other row changes a bit.
TEST_P(CudaAttention, PoisonStaysWithTheRowsThatAttendIt) {
  constexpr int64_t kRows = 90, kKeys = 150;
  for (DType dtype : {DType::kBFloat16, DType::kFloat16}) {
    for (bool aligned : {false, true}) {
      Random random("cuda/poison");
      Problem problem = MakeProblem({dtype, kRows, kKeys, 2, 1, 40, 24}, random);
      if (aligned) Align(problem, random);
      problem.bands = {{{0, 60}, {0, kKeys}, -kUnboundedDiagonal, 60}, {{60, kRows}, {100, kKeys}}};
      const Result clean = Compute(kernel(), problem);
      for (float poison : {std::nanf(""), INFINITY, -INFINITY}) {
        for (int64_t token : {3, 64, 99, 149}) {
          for (bool in_value : {false, true}) {
            Problem poisoned = problem;
            (in_value ? poisoned.value : poisoned.key).Set(token, 0, 5, poison);
            const Result result = Compute(kernel(), poisoned);
            for (int64_t row = 0; row < kRows; ++row) {
              const bool attends = problem.bands[0].Allows(row, token) || problem.bands[1].Allows(row, token);
              for (size_t i = 0; i < 48; ++i) {
                const double was = clean.output[row * 48 + i], is = result.output[row * 48 + i];
                if (!attends || (in_value && i % 24 != 5)) {
                  ASSERT_EQ(is, was) << poison << " in token " << token << ", row " << row << ", element " << i;
                } else if (in_value || std::isnan(poison)) {
                  ASSERT_FALSE(std::isfinite(is)) << poison << " in token " << token << ", row " << row;
                }
              }
            }
          }
        }
      }
    }
  }
}

TEST_P(CudaAttention, KeysThatAllScoreMinusInfinityGiveTheIdentity) {
  Random random("cuda/minus infinity");
  Problem problem = MakeProblem({DType::kBFloat16, 4, 9, 1, 1, 1, 3}, random);
  problem.bands = {{{0, 4}, {0, 9}}};
  problem.query.Fill(1.0f);
  problem.key.Fill(-INFINITY);
  const Result result = Compute(kernel(), problem);
  for (double o : result.output) EXPECT_EQ(o, 0.0);
  for (double lse : result.lse) EXPECT_EQ(lse, -INFINITY);
}

INSTANTIATE_TEST_SUITE_P(Present, CudaAttention,
                         ::testing::ValuesIn(cuda::AttendKernels().begin(), cuda::AttendKernels().end()),
                         [](const auto& info) {
                           std::string name(info.param->name());
                           for (char& c : name) c = std::isalnum(static_cast<unsigned char>(c)) ? c : '_';
                           return name;
                         });

}  // namespace
}  // namespace tessera::testing
