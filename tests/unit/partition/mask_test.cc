#include "partition/mask.h"

#include <gtest/gtest.h>

#include "partition/needs.h"
#include "tests/support/problems.h"

namespace tessera {
namespace {

bool Attends(const Mask& mask, int64_t q, int64_t k) {
  int covers = 0;
  for (const Band& band : mask.bands()) covers += band.Allows(q, k);
  EXPECT_LE(covers, 1) << "pair (" << q << ", " << k << ") is covered twice";
  return covers > 0;
}

TEST(Mask, SliceTypesFollowTheirDefinition) {
  const Range queries{2, 7}, keys{1, 9};
  for (const SliceType type : {SliceType::kFull, SliceType::kCausal, SliceType::kInverseCausal, SliceType::kBiCausal}) {
    const MaskSlice slice{queries, keys, type};
    const Mask mask = Mask::FromSlices(10, 10, {&slice, 1}).value();
    for (int64_t q = 0; q < 10; ++q) {
      for (int64_t k = 0; k < 10; ++k) {
        bool expected = q >= 2 && q < 7 && k >= 1 && k < 9;
        if (type == SliceType::kCausal || type == SliceType::kBiCausal) expected &= k - 9 <= q - 7;
        if (type == SliceType::kInverseCausal || type == SliceType::kBiCausal) expected &= k - 1 >= q - 2;
        EXPECT_EQ(Attends(mask, q, k), expected) << q << " " << k;
      }
    }
  }
}

TEST(Mask, WindowKeepsTheLastTokens) {
  const Mask mask = Mask::Causal(8, 8, {.left = 2, .right = -1}).value();
  for (int64_t q = 0; q < 8; ++q) {
    for (int64_t k = 0; k < 8; ++k) EXPECT_EQ(Attends(mask, q, k), k <= q && k >= q - 2);
  }
}

TEST(Mask, EqualHoweverWritten) {
  EXPECT_EQ(Mask::Causal(5, 5, {.left = 100}).value(), Mask::Causal(5, 5).value());
  const MaskSlice a{{0, 3}, {0, 3}}, b{{3, 6}, {3, 6}};
  const MaskSlice ab[] = {a, b}, ba[] = {b, a};
  EXPECT_EQ(Mask::FromSlices(6, 6, ab).value(), Mask::FromSlices(6, 6, ba).value());
}

TEST(Mask, AreaIsTheNumberOfPairsForAnySegments) {
  auto generator = testing::GeneratorFor("mask/area");
  std::uniform_int_distribution<int64_t> begin(0, 30), count(0, 12), stride(1, 5);
  for (int round = 0; round < 300; ++round) {
    const Problem p = testing::RandomProblem(generator, 60);
    const Segment queries{begin(generator), count(generator), stride(generator)};
    const Segment keys{begin(generator), count(generator), round % 2 ? queries.stride : stride(generator)};
    double pairs = 0, total = 0;
    IntervalSet needed, asking;
    for (int64_t i = 0; i < queries.count; ++i) {
      for (int64_t j = 0; j < keys.count; ++j) pairs += Attends(p.mask, queries.token(i), keys.token(j));
    }
    for (int64_t q = 0; q < p.query_tokens; ++q) {
      for (int64_t k = 0; k < p.key_tokens; ++k) total += Attends(p.mask, q, k);
    }
    EXPECT_EQ(p.mask.Area(queries, keys), pairs);
    EXPECT_EQ(p.mask.Area(), total);
    const MaskIndex index(p.mask);
    EXPECT_EQ(index.AnyPair(queries, keys), pairs > 0);
    for (int64_t i = 0; i < queries.count; ++i) {
      for (int64_t k = 0; k < p.key_tokens; ++k) {
        if (Attends(p.mask, queries.token(i), k)) needed.Add({k, k + 1});
      }
    }
    EXPECT_EQ(index.KeysFor({&queries, 1}), needed);
    for (int64_t q = 0; q < p.query_tokens; ++q) {
      for (int64_t j = 0; j < keys.count; ++j) {
        if (Attends(p.mask, q, keys.token(j))) asking.Add({q, q + 1});
      }
    }
    EXPECT_EQ(index.QueriesFor({&keys, 1}), asking);
  }
}

TEST(Mask, RefusesBadSlicesByName) {
  const auto error = [](std::vector<MaskSlice> slices) {
    return std::string(Mask::FromSlices(10, 8, slices).status().message());
  };
  EXPECT_EQ(error({{{0, 11}, {0, 1}}}),
            "mask: slice 0 has query range [0, 11); it must satisfy 0 <= begin <= end <= 10");
  EXPECT_EQ(error({{{0, 1}, {-1, 1}}}), "mask: slice 0 has key range [-1, 1); it must satisfy 0 <= begin <= end <= 8");
  EXPECT_EQ(error({{{0, 1}, {0, 1}}, {{5, 4}, {0, 1}}}),
            "mask: slice 1 has query range [5, 4); it must satisfy 0 <= begin <= end <= 10");
  EXPECT_EQ(
      error({{{0, 6}, {0, 8}, SliceType::kCausal}, {{4, 10}, {0, 3}}}),
      "mask: slices 0 and 1 overlap: queries [0, 6) and [4, 10), keys [0, 8) and [0, 3) share a (query, key) pair; "
      "slices must be disjoint");
  EXPECT_EQ(Mask::Full(-1, 2).status().message(),
            "mask: lengths are -1 query and 2 key tokens; they must not be negative");
}

TEST(Mask, TrianglesThatShareARectangleMayBeDisjoint) {
  const MaskSlice lower{{0, 8}, {0, 8}, SliceType::kCausal};
  const MaskSlice upper{{0, 7}, {1, 8}, SliceType::kInverseCausal};  // k - q >= 1: what causal leaves out
  const MaskSlice both[] = {lower, upper};
  const auto mask = Mask::FromSlices(8, 8, both);
  ASSERT_TRUE(mask.ok()) << mask.status();
  EXPECT_EQ(mask->Area(), 64);
}

TEST(Mask, RefusesBadDocumentBoundaries) {
  const auto error = [](std::vector<int64_t> b) {
    return std::string(Mask::Documents(10, b, SliceType::kCausal).status().message());
  };
  EXPECT_EQ(error({}),
            "document boundaries run from nothing to nothing; they must start at 0 and end at the length, 10");
  EXPECT_EQ(error({0, 9}), "document boundaries run from 0 to 9; they must start at 0 and end at the length, 10");
  EXPECT_EQ(error({0, 7, 5, 10}),
            "document boundary 2 is 5 after 7; boundaries must not decrease and must lie in [0, 10]");
  EXPECT_EQ(error({0, -3, 10}),
            "document boundary 1 is -3 after 0; boundaries must not decrease and must lie in [0, 10]");
  EXPECT_EQ(error({0, 12, 10}),
            "document boundary 1 is 12 after 0; boundaries must not decrease and must lie in [0, 10]");
  EXPECT_TRUE(Mask::Documents(10, std::vector<int64_t>{0, 0, 4, 4, 10, 10}, SliceType::kCausal).ok());
}

}  // namespace
}  // namespace tessera
