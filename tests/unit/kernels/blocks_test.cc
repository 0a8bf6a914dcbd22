// Tile grouping and mask geometry of the CPU kernels.
#include "kernels/cpu/blocks.h"

#include <gtest/gtest.h>

#include "tests/unit/kernels/problem.h"

namespace tessera::cpu {
namespace {

TEST(Waves, TilesOfEqualQueryRowsShareAGroup) {
  const Tile tiles[] = {{0, {0, 8, 1}, 0, {0, 4, 1}},
                        {8, {40, 8, 1}, 0, {0, 4, 1}},
                        {0, {0, 8, 1}, 4, {20, 4, 1}},
                        {8, {40, 8, 1}, 4, {20, 4, 1}},
                        {0, {0, 8, 1}, 8, {30, 0, 1}}};
  const auto waves = Waves(tiles);
  ASSERT_EQ(waves.size(), 1u);
  ASSERT_EQ(waves[0].size(), 2u);
  EXPECT_EQ(waves[0][0].keys.size(), 2u);
  EXPECT_EQ(waves[0][1].keys[1].first_row, 4);
}

TEST(Waves, OverlappingQueryRowsNeverShareAWave) {
  for (int i = 0; i < 200; ++i) {
    testing::Random random(absl::StrCat("waves/", i));
    std::vector<Tile> tiles;
    int64_t pairs = 0;
    for (int64_t n = random.Integer(0, 12); n > 0; --n) {
      const int64_t row = random.Integer(0, 30), count = random.Integer(0, 10), keys = random.Integer(0, 3);
      tiles.push_back({row, {row, count, 1}, 0, {0, keys, 1}});
      pairs += count * keys;
    }
    for (const auto& wave : Waves(tiles)) {
      std::vector<int> users(50, 0);
      for (const QueryGroup& group : wave) {
        for (int64_t row = 0; row < group.queries.count; ++row) EXPECT_EQ(users[group.first_row + row]++, 0);
        for (const KeyRows& keys : group.keys) pairs -= group.queries.count * keys.keys.count;
      }
    }
    EXPECT_EQ(pairs, 0) << "a tile was lost or repeated";
  }
}

TEST(RowMask, AgreesWithTheBandsPairByPair) {
  RowMask mask;
  for (int i = 0; i < 100; ++i) {
    testing::Random random(absl::StrCat("mask/", i));
    const Segment queries{random.Integer(0, 20), random.Integer(1, 40), random.Integer(1, 4)};
    const Segment keys{random.Integer(0, 20), random.Integer(1, 300), random.Integer(1, 4)};
    const std::vector<Band> bands = testing::RandomBands(queries.last() + 1, keys.last() + 1, random);
    mask.Reset(bands, queries, keys);
    for (int64_t row = 0; row < queries.count; ++row) {
      for (int64_t first = 0; first < keys.count; first += kKeyBlock) {
        uint64_t expected = 0;
        for (int64_t k = 0; k < kKeyBlock && first + k < keys.count; ++k) {
          for (const Band& band : bands) {
            if (band.Allows(queries.token(row), keys.token(first + k))) expected |= uint64_t{1} << k;
          }
        }
        ASSERT_EQ(mask.Bits(row, first), expected) << "case " << i << " row " << row << " key " << first;
        const Range block{first, first + kKeyBlock};
        if (expected != 0) {
          EXPECT_FALSE(Intersect(mask.Outer(row), block).empty());
          bool listed = false;
          for (Range r : mask.key_blocks()) listed |= r.begin <= first / kKeyBlock && first / kKeyBlock < r.end;
          EXPECT_TRUE(listed);
        }
        if (Intersect(mask.Inner(row), block) == block) {
          EXPECT_EQ(expected, ~uint64_t{0});
        }
      }
    }
  }
}

// A window over a long sequence with a few keys that everyone sees must not visit what lies between.
TEST(RowMask, SkipsTheGapBetweenDistantBands) {
  const int64_t tokens = int64_t{1} << 20;
  const Band bands[] = {{{0, tokens}, {0, 4}}, {{0, tokens}, {4, tokens}, -127, 0}};
  RowMask mask;
  mask.Reset(bands, {tokens - 512, 512, 1}, {0, tokens, 1});
  int64_t blocks = 0;
  for (Range r : mask.key_blocks()) blocks += r.size();
  EXPECT_LE(blocks, 1 + 512 / kKeyBlock + 3);
}

}  // namespace
}  // namespace tessera::cpu
