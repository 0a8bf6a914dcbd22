// Whether strided views share memory, against a set of addresses.
#include "runtime/engine/overlap.h"

#include <gtest/gtest.h>

#include <set>

#include "tests/support/problems.h"

namespace tessera {
namespace {

TensorView At(std::byte* data, int64_t rows, int heads, int width, int64_t row_stride, int64_t head_stride) {
  return {data, DType::kFloat32, MemorySpace::kHost, rows, heads, width, row_stride, head_stride};
}

std::set<const std::byte*> Bytes(const ConstTensorView& view) {
  std::set<const std::byte*> bytes;
  for (int64_t row = 0; row < view.rows; ++row) {
    for (int head = 0; head < view.heads; ++head) {
      for (size_t i = 0; i < view.width * SizeInBytes(view.dtype); ++i) {
        bytes.insert(static_cast<const std::byte*>(view.At(row, head)) + i);
      }
    }
  }
  return bytes;
}

TEST(Overlap, IsExactForRandomStrides) {
  auto generator = testing::GeneratorFor("engine/overlap");
  const auto pick = [&](int low, int high) { return std::uniform_int_distribution<int>(low, high)(generator); };
  std::vector<std::byte> memory(8192);
  int shared = 0, apart = 0;
  for (int i = 0; i < testing::Problems(20000); ++i) {
    const auto draw = [&] {
      TensorView view =
          At(memory.data() + 8 * pick(0, 30), pick(0, 6), pick(1, 4), pick(1, 4), pick(0, 30), pick(0, 12));
      view.dtype = static_cast<DType>(pick(0, 3));
      return view;
    };
    const TensorView one = draw(), other = draw();
    const auto bytes = Bytes(one);
    const auto others = Bytes(other);
    const bool meet = std::any_of(others.begin(), others.end(), [&](const std::byte* b) { return bytes.contains(b); });
    ASSERT_EQ(Overlap(one, other), meet) << i;
    ASSERT_EQ(Overlap(other, one), meet) << i;
    ++(meet ? shared : apart);
  }
  EXPECT_GT(shared, testing::Problems(20000) / 10);
  EXPECT_GT(apart, testing::Problems(20000) / 10);
}

TEST(Overlap, TellsBillionsOfInterleavedRowsApart) {
  auto* const data = reinterpret_cast<std::byte*>(uintptr_t{1} << 20);  // never read
  const int64_t rows = int64_t{1} << 32;
  const TensorView even = At(data, rows, 64, 128, 2 * 64 * 128, 128);
  EXPECT_FALSE(Overlap(even, At(data + 4 * 64 * 128, rows, 64, 128, 2 * 64 * 128, 128)));
  EXPECT_TRUE(Overlap(even, At(data + 4 * 64 * 128 - 4, rows, 64, 128, 2 * 64 * 128, 128)));
  // Strides 6 and 10 from an odd distance never meet, however long; from an even one they do.
  EXPECT_FALSE(Overlap(At(data, rows, 1, 1, 6, 1), At(data + 4, rows, 1, 1, 10, 1)));
  EXPECT_TRUE(Overlap(At(data, rows, 1, 1, 6, 1), At(data + 8, rows, 1, 1, 10, 1)));
  EXPECT_FALSE(Overlap(At(data, 2, 1, 1, 6, 1), At(data + 8, 2, 1, 1, 10, 1))) << "but not within two rows";
}

}  // namespace
}  // namespace tessera
