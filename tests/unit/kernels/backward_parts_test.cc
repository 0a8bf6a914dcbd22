// Backward calls over parts of a problem: tiles, shards, heads, threads; and NaN that must stay where it is.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "tests/unit/kernels/backward_problem.h"
#include "tests/unit/kernels/kernel_test.h"
#include "tests/unit/kernels/shards.h"

namespace tessera::testing {
namespace {

class BackwardParts : public KernelTest {
 protected:
  void Add(const BackwardProblem& backward, std::span<const Tile> tiles, GradientSums& sums, int threads = 1) const {
    AttendBackwardArgs args = BackwardArgsOf(backward, sums, tiles);
    args.threads = threads;
    const Status status = kernel().AttendBackward(args);
    EXPECT_TRUE(status.ok()) << status;
  }
  GradientSums Whole(const BackwardProblem& backward, int threads = 1) const {
    GradientSums sums(backward.problem);
    const Tile tile = WholeTile(backward.problem);
    Add(backward, {&tile, 1}, sums, threads);
    return sums;
  }
};

// Keys or queries cut at random, each part its own call, or all parts the tiles of one call.
TEST_P(BackwardParts, SeveralCallsOrTilesEqualOne) {
  for (int i = 0; i < 16; ++i) {
    const std::string name = absl::StrCat("backward calls/", i);
    Random random(name);
    const Problem problem = RandomProblem(random);
    SCOPED_TRACE(name + ": " + problem.Describe());
    const BackwardProblem backward(kernel(), problem, random);
    const bool cut_keys = i % 2 == 0;
    const int64_t tokens = cut_keys ? problem.key_tokens() : problem.query_tokens();
    std::vector<Tile> tiles;
    for (int64_t begin = 0; begin < tokens;) {
      const int64_t count = std::min(tokens - begin, random.Integer(1, cut_keys ? 100 : 20));
      Tile tile = WholeTile(problem);
      (cut_keys ? tile.key_row : tile.query_row) = begin;
      (cut_keys ? tile.keys : tile.queries) = {begin, count, 1};
      tiles.push_back(tile);
      begin += count;
    }
    GradientSums calls(problem), together(problem);
    for (const Tile& tile : tiles) Add(backward, {&tile, 1}, calls);
    Add(backward, tiles, together, 2);
    const GradientJudge judge(backward, RoundsWeights(kernel()));
    judge.Expect(RoundGradients(backward, calls));
    judge.Expect(RoundGradients(backward, together));
  }
}

// Adds the rows of shards back to their tokens; heads of `local` are heads [first, ...) of `whole`. Copies what it read
// to `untouched`, which then must equal `local` bit for bit.
void AddBack(const Tensor& local, const Shards& shards, int first, Tensor& whole, Tensor& untouched) {
  const TensorView view = local.view();
  for (size_t s = 0; s < shards.segments.size(); ++s) {
    for (int64_t i = 0; i < shards.segments[s].count; ++i) {
      const int64_t row = shards.first_rows[s] + i, token = shards.segments[s].token(i);
      for (int head = 0; head < view.heads; ++head) {
        for (int c = 0; c < view.width; ++c) {
          whole.Set(token, first + head, c, whole.Get(token, first + head, c) + local.Get(row, head, c));
          untouched.Set(row, head, c, local.Get(row, head, c));
        }
      }
    }
  }
  EXPECT_EQ(std::memcmp(local.bytes().data(), untouched.bytes().data(), local.bytes().size()), 0)
      << "elements outside the tiles were written";
}

// Strided and shuffled shards in larger tensors full of NaN, query heads in two calls that may split a group.
TEST_P(BackwardParts, ShardsWithPartOfTheHeadsEqualTheWhole) {
  for (int i = 0; i < 16; ++i) {
    const std::string name = absl::StrCat("backward shards/", i);
    Random random(name);
    const Problem problem = RandomProblem(random);
    SCOPED_TRACE(name + ": " + problem.Describe());
    const BackwardProblem backward(kernel(), problem, random);
    GradientSums sums(problem);
    const int cut = static_cast<int>(random.Integer(0, problem.heads()));
    for (const HeadRange heads : {HeadRange{0, cut}, HeadRange{cut, problem.heads()}}) {
      if (heads.empty()) continue;
      const HeadRange kv_heads{heads.begin / problem.group(), (heads.end - 1) / problem.group() + 1};
      const Shards queries = RandomShards(problem.query_tokens(), random);
      const Shards keys = RandomShards(problem.key_tokens(), random);
      const DType fp32 = DType::kFloat32;
      const Tensor query = Shard(problem.query, queries, heads, problem.dtype, random);
      const Tensor key = Shard(problem.key, keys, kv_heads, problem.dtype, random);
      const Tensor value = Shard(problem.value, keys, kv_heads, problem.dtype, random);
      const Tensor output_gradient = Shard(backward.output_gradient, queries, heads, problem.dtype, random);
      const Tensor lse = Shard(backward.lse, queries, heads, fp32, random);
      const Tensor delta = Shard(backward.delta, queries, heads, fp32, random);
      const GradientSums zero(problem);
      Tensor dq = Shard(zero.query, queries, heads, fp32, random);
      Tensor dk = Shard(zero.key, keys, kv_heads, fp32, random);
      Tensor dv = Shard(zero.value, keys, kv_heads, fp32, random);
      Tensor old_dq = dq, old_dk = dk, old_dv = dv;
      std::vector<Tile> tiles;
      for (size_t q = 0; q < queries.segments.size(); ++q) {
        for (size_t k = 0; k < keys.segments.size(); ++k) {
          tiles.push_back({queries.first_rows[q], queries.segments[q], keys.first_rows[k], keys.segments[k]});
        }
      }
      AttendBackwardArgs args = BackwardArgsOf(backward, sums, tiles);
      args.query = query.view();
      args.key = key.view();
      args.value = value.view();
      args.output_gradient = output_gradient.view();
      args.lse = lse.view();
      args.delta = delta.view();
      args.query_gradient = dq.view();
      args.key_gradient = dk.view();
      args.value_gradient = dv.view();
      args.first_query_head = heads.begin;
      args.first_kv_head = kv_heads.begin;
      if (!problem.slopes.empty()) args.score.alibi_slopes = args.score.alibi_slopes.subspan(heads.begin, heads.size());
      args.threads = static_cast<int>(random.Integer(1, 3));
      const Status status = kernel().AttendBackward(args);
      ASSERT_TRUE(status.ok()) << status;
      AddBack(dq, queries, heads.begin, sums.query, old_dq);
      AddBack(dk, keys, kv_heads.begin, sums.key, old_dk);
      AddBack(dv, keys, kv_heads.begin, sums.value, old_dv);
    }
    GradientJudge(backward, RoundsWeights(kernel())).Expect(RoundGradients(backward, sums));
  }
}

TEST_P(BackwardParts, RepeatedTilesAdd) {
  Random random("backward repeated");
  Problem problem = MakeProblem({Served(DType::kFloat32), 40, 90, 2, 1, 16, 8}, random);
  problem.bands = {{{0, 40}, {0, 90}}};
  const BackwardProblem backward(kernel(), problem, random);
  const GradientSums once = Whole(backward);
  GradientSums twice(problem);
  const std::vector<Tile> tiles(2, WholeTile(problem));
  Add(backward, tiles, twice, 2);
  for (int64_t row = 0; row < 40; ++row) EXPECT_EQ(twice.query.Get(row, 1, 3), 2 * once.query.Get(row, 1, 3));
  for (int64_t row = 0; row < 90; ++row) {
    EXPECT_EQ(twice.key.Get(row, 0, 3), 2 * once.key.Get(row, 0, 3));
    EXPECT_EQ(twice.value.Get(row, 0, 3), 2 * once.value.Get(row, 0, 3));
  }
}

TEST_P(BackwardParts, ThreadsDoNotChangeABit) {
  for (int i = 0; i < 3; ++i) {
    Random random(absl::StrCat("backward threads/", i));
    Problem problem = MakeProblem({Served(DType::kFloat32), 400 + 100 * i, 460, 4, 1 + i % 2, 24, 40}, random);
    problem.bands = RandomBands(problem.query_tokens(), problem.key_tokens(), random);
    const BackwardProblem backward(kernel(), problem, random);
    const GradientSums one = Whole(backward, 1);
    for (int threads : {2, 5}) EXPECT_TRUE(one.SameBits(Whole(backward, threads))) << threads << " threads";
  }
}

// NaN or infinity in one row of one input of a causal problem: pairs that the mask hides must not carry it.
TEST_P(BackwardParts, PoisonStaysWithTheRowsThatMeetIt) {
  const float poisons[] = {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()};
  for (float poison : poisons) {
    for (int64_t token : {3, 64, 149}) {
      for (int input = 0; input < 4; ++input) {
        SCOPED_TRACE(absl::StrCat(poison, " at ", token, " of input ", input));
        Random random(absl::StrCat("backward poison/", token));
        Problem problem = MakeProblem({Served(DType::kFloat32), 150, 150, 1, 1, 20, 12}, random);
        problem.bands = {{{0, 150}, {0, 150}, -kUnboundedDiagonal, 0}};
        BackwardProblem backward(kernel(), problem, random);
        const GradientSums clean = Whole(backward);
        Tensor* const inputs[] = {&problem.query, &backward.output_gradient, &problem.key, &problem.value};
        inputs[input]->Set(token, 0, 5, poison);
        const GradientSums poisoned = Whole(backward);
        const bool query_side = input < 2;
        for (int64_t row = 0; row < 150; ++row) {
          const bool query_meets = query_side ? row == token : row >= token;
          const bool key_meets = query_side ? row <= token : row == token;
          for (int c = 0; c < 20 && !query_meets; ++c) {
            EXPECT_EQ(poisoned.query.Get(row, 0, c), clean.query.Get(row, 0, c)) << "dq of " << row;
          }
          for (int c = 0; c < 20 && !key_meets; ++c) {
            EXPECT_EQ(poisoned.key.Get(row, 0, c), clean.key.Get(row, 0, c)) << "dk of " << row;
          }
          for (int c = 0; c < 12 && !key_meets; ++c) {
            EXPECT_EQ(poisoned.value.Get(row, 0, c), clean.value.Get(row, 0, c)) << "dv of " << row;
          }
        }
        // Those that it meets have it: 0 * infinity is not 0.
        if (std::isnan(poison)) {
          EXPECT_TRUE(std::isnan(poisoned.query.Get(token, 0, 5)));
        }
        if (input == 0) {
          EXPECT_FALSE(std::isfinite(poisoned.key.Get(0, 0, 5)));
        } else if (input == 1) {
          EXPECT_FALSE(std::isfinite(poisoned.value.Get(0, 0, 5)));
        } else if (input == 2) {
          EXPECT_FALSE(std::isfinite(poisoned.query.Get(149, 0, 5)));
        }
      }
    }
  }
}

// The last row has a tile's padding behind it, and keys that it does not attend.
TEST_P(BackwardParts, PoisonInTheLastRowStaysThere) {
  for (int64_t rows : {31, 33}) {
    Random random(absl::StrCat("backward last row/", rows));
    Problem problem = MakeProblem({Served(DType::kFloat32), rows, 100, 1, 1, 20, 12}, random);
    problem.bands = {{{0, rows - 1}, {0, 100}}, {{rows - 1, rows}, {0, 10}}};
    BackwardProblem backward(kernel(), problem, random);
    const GradientSums clean = Whole(backward);
    problem.query.Set(rows - 1, 0, 2, std::numeric_limits<float>::quiet_NaN());
    backward.output_gradient.Set(rows - 1, 0, 2, std::numeric_limits<float>::infinity());
    const GradientSums poisoned = Whole(backward);
    for (int64_t row = 10; row < 100; ++row) {
      for (int c = 0; c < 12; ++c) {
        EXPECT_EQ(poisoned.key.Get(row, 0, c), clean.key.Get(row, 0, c)) << "dk of " << row;
        EXPECT_EQ(poisoned.value.Get(row, 0, c), clean.value.Get(row, 0, c)) << "dv of " << row;
      }
    }
    EXPECT_TRUE(std::isnan(poisoned.key.Get(3, 0, 2)));
  }
}

// The row attends keys, but its LSE says that it saw none.
TEST_P(BackwardParts, RowsWithoutLseContributeNothing) {
  Random random("backward empty row");
  Problem problem = MakeProblem({Served(DType::kFloat32), 13, 70, 1, 1, 8, 8}, random);
  problem.bands = {{{0, 7}, {0, 70}}, {{8, 13}, {0, 70}}};
  BackwardProblem backward(kernel(), problem, random);
  const GradientSums hidden = Whole(backward);
  problem.bands = {{{0, 13}, {0, 70}}};
  EXPECT_EQ(backward.lse.Get(7, 0, 0), -INFINITY);
  for (int c = 0; c < 8; ++c) {
    problem.query.Set(7, 0, c, NAN);
    backward.output_gradient.Set(7, 0, c, NAN);
  }
  backward.delta.Set(7, 0, 0, NAN);
  const GradientSums empty = Whole(backward);
  for (int64_t row = 0; row < 70; ++row) {
    EXPECT_EQ(empty.key.Get(row, 0, 0), hidden.key.Get(row, 0, 0));
    EXPECT_EQ(empty.value.Get(row, 0, 0), hidden.value.Get(row, 0, 0));
  }
  EXPECT_EQ(empty.query.Get(7, 0, 0), 0.0f);
}

INSTANTIATE_TEST_SUITE_P(Present, BackwardParts, ::testing::ValuesIn(TestedKernels()), TestName);

}  // namespace
}  // namespace tessera::testing
