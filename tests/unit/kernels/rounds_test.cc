// Pieces of the backward pass: every pair of rows once, no row twice in a round.
#include "kernels/cpu/rounds.h"

#include <gtest/gtest.h>

#include <map>
#include <set>
#include <utility>

namespace tessera::cpu {
namespace {

TEST(Rounds, OverlappingAndRepeatedTilesMeetEveryPairAsOftenAsTheTilesSay) {
  const Tile tiles[] = {{0, {0, 50, 1}, 0, {0, 70, 1}},
                        {20, {100, 40, 3}, 30, {200, 60, 2}},
                        {20, {100, 40, 3}, 30, {200, 60, 2}},
                        {90, {7, 0, 1}, 0, {0, 10, 1}}};
  const Band bands[] = {{{0, 1000}, {0, 1000}}};
  std::map<std::pair<int64_t, int64_t>, int> expected, met;
  const auto count = [](const Tile& tile, std::map<std::pair<int64_t, int64_t>, int>* counts) {
    for (int64_t q = 0; q < tile.queries.count; ++q) {
      for (int64_t k = 0; k < tile.keys.count; ++k) ++(*counts)[{tile.query_row + q, tile.key_row + k}];
    }
  };
  for (const Tile& tile : tiles) count(tile, &expected);
  for (const std::vector<Tile>& round : Rounds(tiles, bands, 16, 24)) {
    std::set<int64_t> queries, keys;
    for (const Tile& piece : round) {
      EXPECT_LE(piece.queries.count, 16);
      EXPECT_LE(piece.keys.count, 24);
      count(piece, &met);
      for (int64_t q = 0; q < piece.queries.count; ++q) EXPECT_TRUE(queries.insert(piece.query_row + q).second);
      for (int64_t k = 0; k < piece.keys.count; ++k) EXPECT_TRUE(keys.insert(piece.key_row + k).second);
    }
  }
  EXPECT_EQ(met, expected);
}

TEST(Rounds, AreFullOnAGridAndHalfFullUnderACausalMask) {
  const Tile tile{0, {0, 800, 1}, 0, {0, 800, 1}};
  const Band full{{0, 800}, {0, 800}}, causal{{0, 800}, {0, 800}, -kUnboundedDiagonal, 0};
  const auto full_rounds = Rounds({&tile, 1}, {&full, 1}, 100, 100);
  ASSERT_EQ(full_rounds.size(), 8u);
  for (const auto& round : full_rounds) EXPECT_EQ(round.size(), 8u);
  const auto causal_rounds = Rounds({&tile, 1}, {&causal, 1}, 100, 100);
  ASSERT_EQ(causal_rounds.size(), 8u);
  for (size_t r = 0; r < 8; ++r) EXPECT_EQ(causal_rounds[r].size(), r == 0 ? 8u : 4u);
}

}  // namespace
}  // namespace tessera::cpu
