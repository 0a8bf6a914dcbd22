#include "partition/interval_set.h"

#include <gtest/gtest.h>

#include "tests/support/problems.h"

namespace tessera {
namespace {

std::vector<bool> Bits(const IntervalSet& set) {
  std::vector<bool> bits(64);
  for (const Range& r : set.ranges()) {
    for (int64_t i = r.begin; i < r.end; ++i) bits[i] = true;
  }
  return bits;
}

TEST(IntervalSet, AgreesWithBitsForRandomOperations) {
  auto generator = testing::GeneratorFor("interval_set/random");
  std::uniform_int_distribution<int64_t> any(0, 63);
  for (int round = 0; round < 500; ++round) {
    IntervalSet a, b;
    for (int i = 0; i < 5; ++i) {
      const int64_t x = any(generator), y = any(generator);
      (i % 2 == 0 ? a : b).Add({std::min(x, y), std::max(x, y)});
    }
    const auto bits_a = Bits(a), bits_b = Bits(b);
    std::vector<bool> both(64), either(64), only_a(64);
    int64_t before = 0;
    const int64_t value = any(generator);
    for (int i = 0; i < 64; ++i) {
      both[i] = bits_a[i] && bits_b[i];
      either[i] = bits_a[i] || bits_b[i];
      only_a[i] = bits_a[i] && !bits_b[i];
      before += i < value && bits_a[i];
    }
    EXPECT_EQ(Bits(a.Intersection(b)), both);
    EXPECT_EQ(Bits(a.Union(b)), either);
    EXPECT_EQ(Bits(a.Difference(b)), only_a);
    EXPECT_EQ(a.CountBefore(value), before);
    EXPECT_EQ(a.Intersects({value, value + 1}), bits_a[value]);
    for (size_t i = 1; i < a.ranges().size(); ++i)
      EXPECT_LT(a.ranges()[i - 1].end, a.ranges()[i].begin);  // normal form
  }
}

}  // namespace
}  // namespace tessera
