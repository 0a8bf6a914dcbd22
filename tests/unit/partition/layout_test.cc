#include "partition/layout.h"

#include <gtest/gtest.h>

#include <set>

namespace tessera {
namespace {

void ExpectOwnedOnce(const Layout& layout) {
  std::set<int64_t> seen;
  for (int r = 0; r < layout.ranks(); ++r) {
    int64_t row = 0;
    for (const Segment& s : layout.segments(r)) {
      for (int64_t i = 0; i < s.count; ++i, ++row) {
        EXPECT_TRUE(seen.insert(s.token(i)).second);
        EXPECT_EQ(layout.ToGlobal(r, LocalToken{row}), GlobalToken{s.token(i)});
      }
    }
    EXPECT_EQ(row, layout.rows(r));
  }
  EXPECT_EQ(static_cast<int64_t>(seen.size()), layout.tokens());
}

TEST(Layout, EveryTokenIsOwnedOnceWhateverDividesWhat) {
  for (int64_t tokens : {0, 1, 2, 7, 16, 33, 100}) {
    const Mask mask = Mask::Causal(tokens, tokens).value();
    for (int ranks : {1, 2, 3, 4, 7, 8, 150}) {
      for (const Layout& layout : {Layout::Contiguous(tokens, ranks), Layout::Zigzag(tokens, ranks),
                                   Layout::Striped(tokens, ranks), Layout::Balanced(mask, tokens, ranks)}) {
        ASSERT_EQ(layout.ranks(), ranks);
        ExpectOwnedOnce(layout);
      }
    }
  }
}

TEST(Layout, BalancedEvensCausalWork) {
  const int64_t tokens = 4096;
  const Mask mask = Mask::Causal(tokens, tokens).value();
  for (int ranks : {2, 3, 5, 8}) {
    const Layout layout = Layout::Balanced(mask, tokens, ranks);
    double most = 0;
    for (int r = 0; r < ranks; ++r) {
      double area = 0;
      for (const Segment& s : layout.segments(r)) area += mask.Area(s, {0, tokens, 1});
      most = std::max(most, area);
    }
    EXPECT_LE(most, 1.05 * mask.Area() / ranks) << ranks;
  }
}

TEST(Layout, RowsOfFindsLocalRows) {
  const Layout layout = Layout::Zigzag(16, 2);  // rank 0: [0,4) and [12,16)
  EXPECT_EQ(layout.RowsOf(0, IntervalSet({2, 14})), IntervalSet({2, 6}));
  EXPECT_TRUE(layout.RowsOf(0, IntervalSet({4, 12})).empty());
  const Layout striped = Layout::Striped(10, 3);  // rank 1: 1, 4, 7
  EXPECT_EQ(striped.RowsOf(1, IntervalSet({2, 8})), IntervalSet({1, 3}));
}

TEST(Layout, FromSegmentsRefusesHolesAndDoubles) {
  EXPECT_EQ(Layout::FromSegments(4, {{{0, 2, 1}}, {{1, 2, 1}}}).status().message(),
            "layout: token 1 is owned twice; each token must be owned exactly once");
  EXPECT_EQ(Layout::FromSegments(4, {{{0, 3, 1}}}).status().message(),
            "layout: segments hold 3 tokens; each of the 4 must be owned exactly once");
  EXPECT_EQ(
      Layout::FromSegments(4, {{{2, 3, 1}}}).status().message(),
      "layout: rank 0 has a segment begin 2, count 3, stride 1; it must hold at least one token and lie in [0, 4)");
}

}  // namespace
}  // namespace tessera
