// Calls over parts of a problem: shards as tiles, partial head ranges, several calls, several threads.
#include <gtest/gtest.h>

#include <cstring>

#include "tests/unit/kernels/kernel_test.h"
#include "tests/unit/kernels/shards.h"

namespace tessera::testing {
namespace {

class Tiles : public KernelTest {};

TEST_P(Tiles, ShardsWithPartOfTheHeadsEqualTheWhole) {
  for (int i = 0; i < 60; ++i) {
    const std::string name = absl::StrCat("shards/", i);
    Random random(name);
    const Problem problem = RandomProblem(random);
    SCOPED_TRACE(name + ": " + problem.Describe());
    const Shards queries = RandomShards(problem.query_tokens(), random);
    const Shards keys = RandomShards(problem.key_tokens(), random);
    HeadRange heads{static_cast<int>(random.Integer(0, problem.heads() - 1)), problem.heads()};
    if (random.OneIn(2)) heads.end = static_cast<int>(random.Integer(heads.begin + 1, problem.heads()));
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
    // A tile over the first rows of a segment only: its rows repeat those of another tile without being equal to them.
    if (tiles.size() > 1 && tiles[0].queries.count > 1) {
      Tile head_tile = tiles[0];
      head_tile.queries.count /= 2;
      Tile tail_tile = tiles[0];
      tail_tile.query_row += head_tile.queries.count;
      tail_tile.queries = Rows(tail_tile.queries, {head_tile.queries.count, tail_tile.queries.count});
      tiles.erase(tiles.begin());
      tiles.push_back(head_tile);
      tiles.push_back(tail_tile);
    }
    Tensor expected_output = output;
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
    args.threads = static_cast<int>(random.Integer(1, 3));
    const Status status = kernel().Attend(args);
    ASSERT_TRUE(status.ok()) << status;

    // Every row back to its token, heads outside the call from a whole run.
    Partials partials(problem.query_tokens(), problem.heads(), problem.v_width());
    const Tile whole = WholeTile(problem);
    ASSERT_TRUE(kernel().Attend(ArgsOf(problem, partials, {&whole, 1})).ok());
    for (size_t q = 0; q < queries.segments.size(); ++q) {
      for (int64_t row = 0; row < queries.segments[q].count; ++row) {
        const int64_t token = queries.segments[q].token(row), at = queries.first_rows[q] + row;
        for (int head = heads.begin; head < heads.end; ++head) {
          for (int c = 0; c < problem.v_width(); ++c) {
            partials.output.Set(token, head, c, output.Get(at, head - heads.begin, c));
            expected_output.Set(at, head - heads.begin, c, output.Get(at, head - heads.begin, c));
          }
          partials.lse.Set(token, head, 0, lse.Get(at, head - heads.begin, 0));
        }
      }
    }
    // An LSE of 1e4 is known between tiles to 5e-4 only, which no implementation of the interface can undo.
    if (std::abs(problem.score.scale) < 10.0f)
      ExpectAccurate(problem, Finish(problem, partials), RoundsWeights(kernel()));
    EXPECT_EQ(std::memcmp(output.bytes().data(), expected_output.bytes().data(), output.bytes().size()), 0)
        << "elements outside the tiles were written";
  }
}

// Folding keys call by call, and attending them apart and merging, agree with one call.
TEST_P(Tiles, SeveralCallsEqualOne) {
  for (int i = 0; i < 40; ++i) {
    const std::string name = absl::StrCat("calls/", i);
    Random random(name);
    Problem problem = RandomProblem(random);
    if (std::abs(problem.score.scale) > 10.0f) problem.score.scale = 0.1f;
    SCOPED_TRACE(name + ": " + problem.Describe());
    Partials folded(problem.query_tokens(), problem.heads(), problem.v_width());
    Partials merged(problem.query_tokens(), problem.heads(), problem.v_width());
    for (int64_t begin = 0; begin < problem.key_tokens();) {
      const int64_t count = std::min(problem.key_tokens() - begin, random.Integer(1, 100));
      Tile tile = WholeTile(problem);
      tile.key_row = begin;
      tile.keys = {begin, count, 1};
      ASSERT_TRUE(kernel().Attend(ArgsOf(problem, folded, {&tile, 1})).ok());
      Partials apart(problem.query_tokens(), problem.heads(), problem.v_width());
      ASSERT_TRUE(kernel().Attend(ArgsOf(problem, apart, {&tile, 1})).ok());
      MergePartials(merged.output.view(), merged.lse.view(), 0, apart.output.view(), apart.lse.view(), 0,
                    problem.query_tokens());
      begin += count;
    }
    ExpectAccurate(problem, Finish(problem, folded), RoundsWeights(kernel()));
    ExpectAccurate(problem, Finish(problem, merged), RoundsWeights(kernel()));
  }
}

TEST_P(Tiles, ThreadsDoNotChangeABit) {
  for (int i = 0; i < 6; ++i) {
    Random random(absl::StrCat("threads/", i));
    Problem problem = MakeProblem({Served(DType::kFloat32), 500 + 100 * i, 260, 4, 1 + i % 2, 24, 40}, random);
    problem.bands = RandomBands(problem.query_tokens(), problem.key_tokens(), random);
    std::vector<Partials> partials;
    const Tile tile = WholeTile(problem);
    for (int threads : {1, 2, 5}) {
      partials.emplace_back(problem.query_tokens(), problem.heads(), problem.v_width());
      AttendArgs args = ArgsOf(problem, partials.back(), {&tile, 1});
      args.threads = threads;
      ASSERT_TRUE(kernel().Attend(args).ok());
      EXPECT_EQ(partials.back().output.bytes(), partials.front().output.bytes()) << threads << " threads";
      EXPECT_EQ(partials.back().lse.bytes(), partials.front().lse.bytes()) << threads << " threads";
    }
  }
}

TEST_P(Tiles, RowsThatSeeNothingKeepTheirPartialBitForBit) {
  Random random("kept");
  Problem problem = MakeProblem({Served(DType::kFloat32), 30, 80, 2, 2, 16, 16}, random);
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

INSTANTIATE_TEST_SUITE_P(Present, Tiles, ::testing::ValuesIn(TestedKernels()), TestName);

}  // namespace
}  // namespace tessera::testing
