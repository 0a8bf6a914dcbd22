// Row operations of latent attention and paged caches on the device, against their CPU namesakes and fp64.
#include "kernels/cuda/row_ops.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>

#include "tests/unit/kernels/cuda/device_kernel.h"
#include "tests/unit/kernels/problem.h"

namespace tessera::testing {
namespace {

constexpr DType kDTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16};

// Half a unit in the last place, and the rounding of what led there.
double Tolerance(DType dtype) {
  return dtype == DType::kFloat32 ? 1e-6 : dtype == DType::kFloat16 ? 0x1.1p-11 : 0x1.1p-8;
}

template <typename T>
DeviceMemory Copied(const std::vector<T>& values, const DeviceStream& stream) {
  DeviceMemory memory(values.size() * sizeof(T));
  memory.CopyFrom(values.data(), values.size() * sizeof(T), stream);
  return memory;
}

Tensor RandomTensor(DType dtype, int64_t rows, int heads, int width, Random& random) {
  Tensor tensor(dtype, rows, heads, width, &random);
  tensor.FillNormal(random, 1.0f);
  return tensor;
}

TEST(CudaRows, RmsNormAgreesWithTheCpu) {
  for (int i = 0; i < 30; ++i) {
    Random random(absl::StrCat("cuda/norm/", i));
    const DType in = kDTypes[i % 3], out = kDTypes[i / 3 % 3];
    const int width = static_cast<int>(random.Integer(1, 600)), heads = static_cast<int>(random.Integer(1, 3));
    const Tensor source = RandomTensor(in, 5, heads, width, random);
    Tensor result = RandomTensor(out, 5, heads, width, random);
    std::vector<float> gamma(i % 2 == 0 ? width : 0);
    for (float& g : gamma) g = random.Normal();
    const DeviceStream stream;
    const DeviceTensor d_source(source.view(), stream), d_result(result.view(), stream);
    const DeviceMemory d_gamma = Copied(gamma, stream);
    const Status status = cuda::RmsNormRows(OnDevice(source, d_source),
                                            gamma.empty() ? nullptr : reinterpret_cast<float*>(d_gamma.data()), 1e-5f,
                                            OnDevice(result, d_result), stream.get());
    ASSERT_TRUE(status.ok()) << status;
    d_result.CopyBack(result.view(), stream);
    for (int64_t row = 0; row < 5; ++row) {
      for (int head = 0; head < heads; ++head) {
        std::vector<float> expected(width);
        for (int c = 0; c < width; ++c) expected[c] = source.Get(row, head, c);
        RmsNormRow(expected, gamma, 1e-5f);
        for (int c = 0; c < width; ++c) {
          ASSERT_NEAR(result.Get(row, head, c), expected[c], Tolerance(out) * std::abs(expected[c]) + 1e-7);
        }
      }
    }
  }
}

// The CPU's own rounding is the reference: equal to the last bit.
TEST(CudaRows, ScaleRoundsOnce) {
  for (int i = 0; i < 27; ++i) {
    Random random(absl::StrCat("cuda/scale/", i));
    const DType in = kDTypes[i % 3], out = kDTypes[i / 3 % 3];
    const int width = static_cast<int>(random.Integer(1, 70)), heads = static_cast<int>(random.Integer(1, 5));
    const int64_t rows = random.Integer(0, 9);
    const float scale = i % 2 == 0 ? 1.0f : random.Normal();
    const Tensor source = RandomTensor(in, rows, heads, width, random);
    Tensor result(out, rows, heads, width, &random);
    Tensor expected = result;
    const DeviceStream stream;
    const DeviceTensor d_source(source.view(), stream), d_result(result.view(), stream);
    ASSERT_EQ(cuda::ScaleRows(OnDevice(source, d_source), scale, OnDevice(result, d_result), stream.get()),
              absl::OkStatus());
    d_result.CopyBack(result.view(), stream);
    for (int64_t row = 0; row < rows; ++row) {
      for (int head = 0; head < heads; ++head) {
        for (int c = 0; c < width; ++c) expected.Set(row, head, c, scale * source.Get(row, head, c));
      }
    }
    EXPECT_EQ(result.bytes(), expected.bytes());
  }
}

TEST(CudaRows, RopeAgreesWithTheCpu) {
  for (int i = 0; i < 24; ++i) {
    Random random(absl::StrCat("cuda/rope/", i));
    const DType dtype = kDTypes[i % 3];
    RopeOptions options;
    options.layout = i % 2 == 0 ? RopeLayout::kHalfSplit : RopeLayout::kInterleaved;
    if (i % 5 == 0) options.yarn = YarnScaling{4.0, 64, 32.0, 1.0, 1.0, 0.5};
    const int width = 2 * static_cast<int>(random.Integer(1, 40)), heads = static_cast<int>(random.Integer(1, 3));
    Tensor tensor = RandomTensor(dtype, 6, heads, width, random);
    const Tensor before = tensor;
    std::vector<int64_t> positions;
    for (int row = 0; row < 6; ++row) positions.push_back(random.Integer(0, 99));
    const DeviceStream stream;
    const DeviceTensor d_tensor(tensor.view(), stream);
    const DeviceMemory d_positions = Copied(positions, stream);
    const DeviceMemory d_table = Copied(cuda::RopeTableValues(options, width, 100), stream);
    const Status status = cuda::RotateRows(OnDevice(tensor, d_tensor), reinterpret_cast<int64_t*>(d_positions.data()),
                                           reinterpret_cast<float*>(d_table.data()), options.layout, stream.get());
    ASSERT_TRUE(status.ok()) << status;
    d_tensor.CopyBack(tensor.view(), stream);
    const RopeTable table(options, width, 100);
    for (int64_t row = 0; row < 6; ++row) {
      for (int head = 0; head < heads; ++head) {
        std::vector<float> expected(width);
        for (int c = 0; c < width; ++c) expected[c] = before.Get(row, head, c);
        table.Apply(expected.data(), positions[row]);
        for (int c = 0; c < width; ++c) {
          ASSERT_NEAR(tensor.Get(row, head, c), expected[c], Tolerance(dtype) * std::abs(expected[c]) + 1e-6);
        }
      }
    }
  }
}

// Entry (i, j) of the Sylvester matrix is -1 to the number of ones that i and j share.
TEST(CudaRows, HadamardIsTheSylvesterMatrix) {
  for (int width = 1; width <= 1024; width *= 2) {
    Random random(absl::StrCat("cuda/hadamard/", width));
    const DType dtype = kDTypes[std::countr_zero(static_cast<unsigned>(width)) % 3];
    Tensor tensor = RandomTensor(dtype, 3, 2, width, random);
    const Tensor before = tensor;
    std::vector<float> signs(width);
    for (float& sign : signs) sign = random.OneIn(2) ? 1.0f : -1.0f;
    const DeviceStream stream;
    const DeviceTensor d_tensor(tensor.view(), stream);
    const DeviceMemory d_signs = Copied(signs, stream);
    const Status status = cuda::HadamardRows(OnDevice(tensor, d_tensor), reinterpret_cast<float*>(d_signs.data()),
                                             OnDevice(tensor, d_tensor), stream.get());
    ASSERT_TRUE(status.ok()) << status;
    d_tensor.CopyBack(tensor.view(), stream);
    for (int64_t row = 0; row < 3; ++row) {
      for (int i = 0; i < width; ++i) {
        double expected = 0;
        for (int j = 0; j < width; ++j) {
          const int shared = std::popcount(static_cast<unsigned>(i & j));
          expected += (shared % 2 == 0 ? 1.0 : -1.0) * signs[j] * before.Get(row, 1, j);
        }
        expected /= std::sqrt(static_cast<double>(width));
        ASSERT_NEAR(tensor.Get(row, 1, i), expected, Tolerance(dtype) * std::abs(expected) + 2e-6) << width;
      }
    }
  }
}

TEST(CudaRows, CacheAppendAndGatherAreInverse) {
  for (int width : {1, 6, 40, 64}) {
    Random random(absl::StrCat("cuda/cache/", width));
    constexpr int kHeads = 2, kPageTokens = 4, kPages = 5;
    CacheLayer cache;
    cache.dtype = DType::kBFloat16;
    cache.kv_heads = kHeads;
    cache.qk_width = cache.v_width = width;
    cache.page_tokens = kPageTokens;
    cache.key_row_stride = cache.value_row_stride = 2 * width;
    cache.key_head_stride = cache.value_head_stride = 2 * width * kPageTokens;
    const int64_t part_bytes = 2 * width * kPageTokens * kHeads;
    cache.page_stride = 2 * part_bytes;
    std::vector<std::byte> pool(kPages * cache.page_stride, std::byte{0x55});
    const DeviceStream stream;
    const DeviceMemory d_pool = Copied(pool, stream);
    cache.key = d_pool.data();
    cache.value = d_pool.data() + part_bytes;
    const std::vector<cuda::CacheSlot> slots = {{3, 2}, {3, 3}, {-1, 0}, {0, 0}, {4, 1}};
    const DeviceMemory d_slots = Copied(slots, stream);
    const auto* const d = reinterpret_cast<const cuda::CacheSlot*>(d_slots.data());
    const Tensor rows = RandomTensor(DType::kBFloat16, 5, kHeads, width, random);
    Tensor back(DType::kBFloat16, 5, kHeads, width, &random);
    back.Fill(7.0f);
    const DeviceTensor d_rows(rows.view(), stream), d_back(back.view(), stream);
    ASSERT_TRUE(cuda::AppendToCache(OnDevice(rows, d_rows), d, cache, cuda::CachePart::kValues, stream.get()).ok());
    ASSERT_TRUE(cuda::GatherFromCache(cache, cuda::CachePart::kValues, d, OnDevice(back, d_back), stream.get()).ok());
    d_back.CopyBack(back.view(), stream);
    d_pool.CopyTo(pool.data(), pool.size(), stream);
    std::vector<std::byte> expected(pool.size(), std::byte{0x55});
    for (int64_t row = 0; row < 5; ++row) {
      for (int head = 0; head < kHeads; ++head) {
        for (int i = 0; i < width; ++i) {
          EXPECT_EQ(back.Get(row, head, i), slots[row].page < 0 ? 7.0f : rows.Get(row, head, i));
          if (slots[row].page < 0) continue;
          StoreFromFloat(expected.data() + slots[row].page * cache.page_stride + part_bytes +
                             (head * kPageTokens + slots[row].row) * 2 * width,
                         DType::kBFloat16, i, rows.Get(row, head, i));
        }
      }
    }
    EXPECT_EQ(pool, expected);
  }
}

TEST(CudaRows, RefuseShapes) {
  Tensor odd(DType::kFloat32, 1, 1, 3), wide(DType::kFloat64, 1, 1, 4), even(DType::kFloat32, 1, 1, 4);
  EXPECT_EQ(cuda::RotateRows(odd.view(), nullptr, nullptr, RopeLayout::kHalfSplit, nullptr).message(),
            "cuda rope: the width is 3; it must be even");
  EXPECT_EQ(cuda::HadamardRows(odd.view(), nullptr, odd.view(), nullptr).message(),
            "cuda hadamard: the width is 3; it must be a power of two up to 8192");
  EXPECT_EQ(cuda::RmsNormRows(odd.view(), nullptr, 0, even.view(), nullptr).message(),
            "cuda rms norm: the input is [1, 1, 3], the output [1, 1, 4]; they must agree");
  EXPECT_EQ(cuda::ScaleRows(odd.view(), 1, even.view(), nullptr).message(),
            "cuda scale: the input is [1, 1, 3], the output [1, 1, 4]; they must agree");
  EXPECT_EQ(cuda::ScaleRows(even.view(), 1, Tensor(DType::kFloat64, 1, 1, 4).view(), nullptr).message(),
            "cuda scale: the dtype is fp64; it must be fp32, bf16 or fp16");
  EXPECT_EQ(cuda::RmsNormRows(wide.view(), nullptr, 0, wide.view(), nullptr).message(),
            "cuda rms norm: the dtype is fp64; it must be fp32, bf16 or fp16");
  CacheLayer cache;
  cache.qk_width = 8;
  EXPECT_EQ(cuda::AppendToCache(even.view(), nullptr, cache, cuda::CachePart::kKeys, nullptr).message(),
            "cuda cache: rows of 1 heads of width 4 in fp32; the cache has 1 heads of width 8 in bf16");
}

}  // namespace
}  // namespace tessera::testing
