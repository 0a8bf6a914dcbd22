#include "partition/reshard.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>

#include "tests/support/reshards.h"

namespace tessera {
namespace {

// Who holds a cell, from the sharding's own definition cell by cell.
bool HoldsCell(const CacheEnd& end, const CacheRowShape& shape, int index, int sequence, int64_t token,
               int64_t column) {
  if (!end.layouts.empty()) {
    for (const Segment& segment : end.layouts[sequence].segments(index)) {
      for (int64_t i = 0; i < segment.count; ++i) {
        if (segment.token(i) == token) return true;
      }
    }
    return false;
  }
  const CacheSharding& sharding = end.sharding;
  if (!sharding.Holds(index, token)) return false;
  const HeadRange heads = sharding.KvHeads(index, shape.kv_heads);
  if (shape.latent) {
    if (heads.empty()) return false;
    const Range latent = sharding.LatentColumns(index, shape.value_width);
    return column >= shape.value_width || (column >= latent.begin && column < latent.end);
  }
  const int64_t keys = int64_t{shape.kv_heads} * shape.key_width;
  const int64_t head = column < keys ? column / shape.key_width : (column - keys) / shape.value_width;
  return head >= heads.begin && head < heads.end;
}

void CheckByBruteForce(const ReshardPlan& plan) {
  const ReshardSpec& spec = plan.spec;
  int64_t moved = 0, least = 0;
  for (size_t j = 0; j < spec.to.ranks.size(); ++j) {
    const int i = spec.from.IndexOf(spec.to.ranks[j]);
    for (size_t s = 0; s < spec.tokens.size(); ++s) {
      const int64_t width = spec.shape.elements();
      std::vector<int> arrivals(spec.tokens[s] * width);
      for (const ReshardMessage& message : plan.messages) {
        if (message.to != spec.to.ranks[j]) continue;
        for (const ReshardPart& part : message.parts) {
          if (part.sequence != static_cast<int>(s)) continue;
          for (const Range& tokens : part.tokens.ranges()) {
            for (int64_t t = tokens.begin; t < tokens.end; ++t) {
              for (const Range& columns : part.columns.ranges()) {
                for (int64_t c = columns.begin; c < columns.end; ++c) {
                  ++arrivals[t * width + c];
                  moved += message.from != message.to;
                  ASSERT_TRUE(HoldsCell(spec.from, spec.shape, spec.from.IndexOf(message.from), s, t, c));
                }
              }
            }
          }
        }
      }
      for (int64_t t = 0; t < spec.tokens[s]; ++t) {
        for (int64_t c = 0; c < width; ++c) {
          const bool wanted = HoldsCell(spec.to, spec.shape, j, s, t, c);
          ASSERT_EQ(arrivals[t * width + c], wanted)
              << "rank " << spec.to.ranks[j] << " token " << t << " column " << c;
          least += wanted && (i == kNoIndex || !HoldsCell(spec.from, spec.shape, i, s, t, c));
        }
      }
    }
  }
  EXPECT_EQ(moved, least);
  EXPECT_EQ(MovedElements(spec), least);
}

TEST(Reshard, EveryCellArrivesOnceFromAHolderAndNothingElseMoves) {
  const int cases = testing::Problems(4000);
  for (int n = 0; n < cases; ++n) {
    auto generator = testing::GeneratorFor(absl::StrCat("reshard/", n));
    const ReshardSpec spec = testing::RandomReshard(generator, 1 + n % 9, 40);
    const auto plan = MakeReshardPlan(spec);
    ASSERT_TRUE(plan.ok()) << plan.status();
    SCOPED_TRACE(absl::StrCat("reshard/", n, " ", spec.from.sharding.ToString(), " to ", spec.to.sharding.ToString(),
                              "\n", plan->ToString()));
    const Status status = Verify(*plan);
    ASSERT_TRUE(status.ok()) << status;
    CheckByBruteForce(*plan);
    if (HasFatalFailure()) return;
  }
}

TEST(Reshard, HoldsUpTo64Ranks) {
  const int cases = testing::Problems(400);
  for (int n = 0; n < cases; ++n) {
    auto generator = testing::GeneratorFor(absl::StrCat("reshard/64/", n));
    const auto plan = MakeReshardPlan(testing::RandomReshard(generator, 64, 3000));
    ASSERT_TRUE(plan.ok()) << plan.status();
    const Status status = Verify(*plan);
    ASSERT_TRUE(status.ok()) << "reshard/64/" << n << " " << status;
  }
}

std::vector<int> World(int first, int count) {
  std::vector<int> ranks(count);
  std::iota(ranks.begin(), ranks.end(), first);
  return ranks;
}

constexpr CacheRowShape kMla{true, 1, 576, 512, DType::kBFloat16};

TEST(Reshard, HoldersOfTheSameShareTheSending) {
  for (int from : {1, 2, 3, 4, 7}) {
    for (int to : {1, 2, 4, 8}) {
      const ReshardSpec spec{kMla,
                             {1000, 17, 0, 4003},
                             {World(0, from), {CacheAxis::kReplicated, from}, {}},
                             {World(from, to), {CacheAxis::kLatent, to, to}, {}}};
      const auto plan = MakeReshardPlan(spec);
      ASSERT_TRUE(plan.ok() && Verify(*plan).ok());
      std::map<int, int64_t> sent;
      for (const ReshardMessage& message : plan->messages) sent[message.from] += message.elements();
      const int64_t fair = MovedElements(spec) / from;
      for (const auto& [rank, elements] : sent) EXPECT_NEAR(elements, fair, 2 * 576) << from << " to " << to;
      EXPECT_EQ(static_cast<int>(sent.size()), from);
      EXPECT_LE(static_cast<int>(plan->messages.size()), from + to - 1);
    }
  }
}

TEST(Reshard, KeyValueHeadsHeldUnevenlyAreLevelled) {
  // 12 query heads over 3 ranks read 2 key/value heads: rank 1 holds both, ranks 0 and 2 one each.
  const ReshardSpec spec{{false, 2, 64, 64, DType::kBFloat16},
                         {1000},
                         {World(0, 3), {CacheAxis::kHead, 3, 1, 1, 12}, {}},
                         {World(3, 4), {CacheAxis::kReplicated, 4}, {}}};
  const auto plan = MakeReshardPlan(spec);
  ASSERT_TRUE(plan.ok() && Verify(*plan).ok());
  int64_t most = 0;
  std::map<int, int64_t> sent;
  for (const ReshardMessage& message : plan->messages) most = std::max(most, sent[message.from] += message.elements());
  EXPECT_LE(most, MovedElements(spec) * 3 / 8 + 256);
}

// Prefill by zigzag context parallelism, then decode with latent slices on the same ranks: a rank lacks the tokens of
// the others, of its slice and of the rope columns.
TEST(Reshard, ZigzagToSlicesMovesWhatTheFormulaSays) {
  const int ranks = 4;
  const int64_t tokens = 4096;
  const ReshardSpec spec{kMla,
                         {tokens},
                         {World(0, ranks), {}, {Layout::Zigzag(tokens, ranks)}},
                         {World(0, ranks), {CacheAxis::kLatent, ranks, 2}, {}}};
  const auto plan = MakeReshardPlan(spec);
  ASSERT_TRUE(plan.ok() && Verify(*plan).ok());
  EXPECT_EQ(MovedElements(spec), ranks * tokens * 3 / 4 * (256 + 64));
  EXPECT_EQ(plan->messages.size(), 16u);
}

TEST(Reshard, NothingMovesBetweenEqualShardings) {
  for (const CacheSharding& sharding :
       {CacheSharding{CacheAxis::kReplicated, 4}, {CacheAxis::kSequence, 4, 1, 16}, {CacheAxis::kLatent, 4, 2}}) {
    const ReshardSpec spec{kMla, {100, 33}, {World(0, 4), sharding, {}}, {World(0, 4), sharding, {}}};
    EXPECT_EQ(MovedElements(spec), 0);
    const auto plan = MakeReshardPlan(spec);
    ASSERT_TRUE(plan.ok() && Verify(*plan).ok());
    EXPECT_EQ(plan->messages.size(), 4u);
  }
}

TEST(Reshard, PrintsALinePerMessage) {
  const ReshardSpec spec{{true, 1, 12, 8, DType::kBFloat16},
                         {10},
                         {{0, 1}, {CacheAxis::kSequence, 2, 1, 2}, {}},
                         {{2}, {CacheAxis::kReplicated, 1}, {}}};
  EXPECT_EQ(MakeReshardPlan(spec)->ToString(),
            "0 -> 2: 72 elements a layer; sequence 0 tokens [0, 2) [4, 6) [8, 10) columns [0, 12)\n"
            "1 -> 2: 48 elements a layer; sequence 0 tokens [2, 4) [6, 8) columns [0, 12)\n");
}

TEST(Reshard, VerifyFindsWhatIsWrong) {
  const ReshardSpec spec{{true, 1, 12, 8, DType::kBFloat16},
                         {10},
                         {{0, 1}, {CacheAxis::kReplicated, 2}, {}},
                         {{1, 2}, {CacheAxis::kSequence, 2, 1, 4}, {}}};
  const ReshardPlan good = MakeReshardPlan(spec).value();
  ASSERT_TRUE(Verify(good).ok());
  const auto text = [](const ReshardPlan& plan) { return std::string(Verify(plan).message()); };
  const IntervalSet columns({0, 12});
  const ReshardMessage own{1, 1, {{0, IntervalSet({0, 4}).Union(IntervalSet({8, 10})), columns}}};

  EXPECT_EQ(text({spec, {own}}), "reshard plan: rank 2 never gets token 4 of sequence 0, column 0");
  EXPECT_EQ(
      text({spec, {{0, 2, {{0, IntervalSet({4, 8}), columns}}}, own, {1, 2, {{0, IntervalSet({6, 7}), columns}}}}}),
      "reshard plan: rank 2 gets token 6 of sequence 0, column 0 twice");
  EXPECT_EQ(text({spec, {{0, 2, {{0, IntervalSet({4, 9}), columns}}}, own}}),
            "reshard plan: rank 2 gets token 8 of sequence 0, column 0 and shall not hold it");
  EXPECT_EQ(text({spec, {{0, 1, own.parts}, {0, 2, {{0, IntervalSet({4, 8}), columns}}}}}),
            "reshard plan: 120 elements move; 48 would do");
  EXPECT_EQ(text({spec, {own, {0, 2, {{0, IntervalSet({4, 8}), columns}}}}}),
            "reshard plan: message 0 -> 2 is out of order or doubled");
  EXPECT_EQ(text({spec, {{0, 3, own.parts}}}), "reshard plan: message 0 -> 3 is not from a holder to a new holder");
  EXPECT_EQ(text({spec, {{0, 2, {{0, IntervalSet({4, 11}), columns}}}}}),
            "reshard plan: rank 0 sends rank 2 of sequence 0 what it does not hold");
}

TEST(Reshard, RefusalsNameTheEnd) {
  const ReshardSpec good{kMla, {10}, {{0, 1}, {CacheAxis::kReplicated, 2}, {}}, {{2}, {CacheAxis::kReplicated, 1}, {}}};
  const auto text = [&](auto change) {
    ReshardSpec spec = good;
    change(spec);
    return std::string(MakeReshardPlan(spec).status().message());
  };
  EXPECT_EQ(text([](ReshardSpec& s) { s.from.ranks = {0}; }),
            "reshard, source: 1 world ranks are named; the sharding has 2");
  EXPECT_EQ(text([](ReshardSpec& s) {
              s.from.ranks = {3, 3};
            }),
            "reshard, source: rank 3 is named; ranks must be at least 0 and named once");
  EXPECT_EQ(
      text([](ReshardSpec& s) {
        s.to.sharding = {CacheAxis::kLatent, 1, 2};
      }),
      "reshard, destination: cache: groups is 2; it must be one of 1: it divides 1 ranks and the latent width 512");
  EXPECT_EQ(text([](ReshardSpec& s) { s.from.layouts = {Layout::Zigzag(9, 2)}; }),
            "reshard, source: the layout of sequence 0 is of 9 tokens on 2 ranks; it must be of 10 on 2");
  EXPECT_EQ(text([](ReshardSpec& s) { s.to.layouts = {Layout::Zigzag(10, 1)}; }),
            "reshard: the new holders have layouts; only the source may");
  EXPECT_EQ(text([](ReshardSpec& s) { s.tokens = {-1}; }),
            "reshard: a sequence has -1 tokens; it must be from 0 to 2^32");
}

}  // namespace
}  // namespace tessera
