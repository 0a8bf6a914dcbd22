#include "runtime/engine/slots.h"

#include <gtest/gtest.h>

#include <cstring>
#include <numeric>

namespace tessera {
namespace {

TEST(Slots, PackAndUnpackHeadSlices) {
  RankProgram program;
  program.slots = {{SlotContent::kQuery, false, 5, {2, 6}, 3, 2}, {SlotContent::kQuery, false, 5, {3, 5}, 3, 2}};
  const auto slots = SlotTable::Allocate(program, DType::kBFloat16);
  ASSERT_TRUE(slots.ok());
  auto* from = reinterpret_cast<uint16_t*>(slots->data(0));
  std::iota(from, from + 5 * 4 * 3, uint16_t{0});
  const Region slice{0, {1, 4}, {3, 5}};
  EXPECT_EQ(slots->RegionBytes(slice), 3 * 2 * 3 * 2);
  std::vector<uint16_t> packed(18);
  EXPECT_EQ(slots->Pack(slice, reinterpret_cast<std::byte*>(packed.data())), 36);
  for (int row = 0; row < 3; ++row) {
    for (int i = 0; i < 6; ++i) EXPECT_EQ(packed[row * 6 + i], (row + 1) * 12 + 3 + i);
  }
  EXPECT_EQ(slots->Unpack({1, {2, 5}, {3, 5}}, reinterpret_cast<std::byte*>(packed.data())), 36);
  EXPECT_EQ(std::memcmp(slots->data(1) + 2 * 12, packed.data(), 36), 0);
  slots->Copy({0, {0, 2}, {3, 5}}, {1, {0, 2}, {3, 5}});
  EXPECT_EQ(reinterpret_cast<uint16_t*>(slots->data(1))[0], 3);
  EXPECT_EQ(reinterpret_cast<uint16_t*>(slots->data(1))[6], 15);
}

}  // namespace
}  // namespace tessera
