// Row operations on the device against their CPU namesakes and fp64.
#include "kernels/cuda/steps.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "kernels/attention_backward.h"
#include "tests/unit/kernels/cuda/device_kernel.h"
#include "tests/unit/kernels/problem.h"

namespace tessera::testing {
namespace {

// A device copy with a view of it.
struct OnDevice {
  OnDevice(const Tensor& tensor, const DeviceStream& stream) : host(tensor.view()), copy(host, stream) {}
  TensorView view() const {
    TensorView view = host;
    view.data = copy.view().data;
    view.space = MemorySpace::kDevice;
    return view;
  }
  void Back(const Tensor& tensor, const DeviceStream& stream) const { copy.CopyBack(tensor.view(), stream); }
  TensorView host;
  DeviceTensor copy;
};

Tensor RandomPartialLse(int64_t rows, int heads, Random& random) {
  Tensor lse(DType::kFloat32, rows, heads, 1, &random);
  for (int64_t row = 0; row < rows; ++row) {
    for (int head = 0; head < heads; ++head) {
      const float values[] = {-INFINITY, INFINITY, 100.0f * random.Normal(), random.Normal(), random.Normal(), 5.0f};
      lse.Set(row, head, 0, values[random.Integer(0, 5)]);
    }
  }
  return lse;
}

void ExpectClose(const Tensor& is, const Tensor& expected, float tolerance) {
  const TensorView view = expected.view();
  for (int64_t row = 0; row < view.rows; ++row) {
    for (int head = 0; head < view.heads; ++head) {
      for (int i = 0; i < view.width; ++i) {
        const float a = is.Get(row, head, i), b = expected.Get(row, head, i);
        if (std::isfinite(b)) {
          ASSERT_NEAR(a, b, tolerance * (1 + std::abs(b))) << row << " " << head << " " << i;
        } else {
          ASSERT_TRUE(a == b || (std::isnan(a) && std::isnan(b))) << row << " " << head << " " << a << " for " << b;
        }
      }
    }
  }
}

TEST(CudaSteps, MergeAgreesWithTheCpu) {
  for (int i = 0; i < 40; ++i) {
    Random random(absl::StrCat("cuda/merge/", i));
    const int heads = static_cast<int>(random.Integer(1, 4)), width = static_cast<int>(random.Integer(1, 140));
    Tensor output(DType::kFloat32, 20, heads, width, &random), other(DType::kFloat32, 15, heads, width, &random);
    output.FillNormal(random, 1.0f);
    other.FillNormal(random, 1.0f);
    Tensor lse = RandomPartialLse(20, heads, random), other_lse = RandomPartialLse(15, heads, random);
    const DeviceStream stream;
    const OnDevice d_output(output, stream), d_other(other, stream), d_lse(lse, stream), d_other_lse(other_lse, stream);
    const int64_t count = random.Integer(0, 12);
    const Status status = cuda::MergePartials(d_output.view(), d_lse.view(), 7, d_other.view(), d_other_lse.view(), 3,
                                              count, stream.get());
    ASSERT_TRUE(status.ok()) << status;
    Tensor got = output, got_lse = lse;
    d_output.Back(got, stream);
    d_lse.Back(got_lse, stream);
    MergePartials(output.view(), lse.view(), 7, other.view(), other_lse.view(), 3, count);
    ExpectClose(got, output, 1e-6f);
    ExpectClose(got_lse, lse, 1e-6f);
  }
}

TEST(CudaSteps, FinishAgreesWithTheCpu) {
  for (int i = 0; i < 40; ++i) {
    Random random(absl::StrCat("cuda/finish/", i));
    const DType dtypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16};
    const DType dtype = dtypes[i % 3];
    const int heads = static_cast<int>(random.Integer(1, 4)), width = static_cast<int>(random.Integer(1, 140));
    Tensor output(DType::kFloat32, 20, heads, width, &random);
    output.FillNormal(random, 1.0f);
    const Tensor lse = RandomPartialLse(20, heads, random);
    std::vector<float> sinks;
    for (int head = 0; random.OneIn(2) && head < heads; ++head) sinks.push_back(random.Normal());
    if (!sinks.empty()) sinks.resize(heads, -INFINITY);
    Tensor result(dtype, 20, heads, width, &random), result_lse(DType::kFloat32, 20, heads, 1, &random);
    result.Fill(0.0f);
    const DeviceStream stream;
    const OnDevice d_output(output, stream), d_lse(lse, stream), d_result(result, stream);
    const OnDevice d_result_lse(result_lse, stream);
    DeviceMemory d_sinks(sinks.size() * sizeof(float));
    d_sinks.CopyFrom(sinks.data(), sinks.size() * sizeof(float), stream);
    const Status status = cuda::FinishPartials(d_output.view(), d_lse.view(),
                                               sinks.empty() ? nullptr : reinterpret_cast<float*>(d_sinks.data()),
                                               d_result.view(), d_result_lse.view(), stream.get());
    ASSERT_TRUE(status.ok()) << status;
    Tensor got = result, got_lse = result_lse;
    d_result.Back(got, stream);
    d_result_lse.Back(got_lse, stream);
    FinishPartials(output.view(), lse.view(), sinks, result.view(), result_lse.view(), 1);
    // One rounding of the result may go the other way.
    ExpectClose(got, result, dtype == DType::kFloat32 ? 1e-6f : dtype == DType::kFloat16 ? 0x1p-10f : 0x1p-7f);
    ExpectClose(got_lse, result_lse, 1e-6f);
  }
}

TEST(CudaSteps, DeltaAndSinkGradientAgreeWithTheCpu) {
  for (int i = 0; i < 20; ++i) {
    Random random(absl::StrCat("cuda/delta/", i));
    const DType dtype = i % 2 == 0 ? DType::kBFloat16 : DType::kFloat16;
    const int heads = static_cast<int>(random.Integer(1, 4)), width = static_cast<int>(random.Integer(1, 260));
    const int64_t rows = random.Integer(1, 600 / width + 1);
    Tensor output(dtype, rows, heads, width, &random), gradient(dtype, rows, heads, width, &random);
    output.FillNormal(random, 1.0f);
    gradient.FillNormal(random, 1.0f);
    Tensor delta(DType::kFloat32, rows, heads, 1, &random), lse(DType::kFloat32, rows, heads, 1, &random);
    delta.Fill(0.0f);
    lse.FillNormal(random, 1.0f);
    lse.Set(0, 0, 0, -INFINITY);
    std::vector<float> sinks(heads), sums(heads, 0.5f);
    for (float& sink : sinks) sink = random.Normal();
    if (i == 3) sinks[0] = -INFINITY;
    const DeviceStream stream;
    const OnDevice d_output(output, stream), d_gradient(gradient, stream), d_delta(delta, stream), d_lse(lse, stream);
    const size_t bytes = heads * sizeof(float);
    DeviceMemory d_sinks(bytes), d_sums(bytes);
    d_sinks.CopyFrom(sinks.data(), bytes, stream);
    d_sums.CopyFrom(sums.data(), bytes, stream);
    ASSERT_TRUE(cuda::ComputeDelta(d_output.view(), d_gradient.view(), d_delta.view(), stream.get()).ok());
    ASSERT_TRUE(cuda::AddSinkGradient(d_lse.view(), d_delta.view(), reinterpret_cast<float*>(d_sinks.data()),
                                      reinterpret_cast<float*>(d_sums.data()), stream.get())
                    .ok());
    Tensor got = delta;
    std::vector<float> got_sums(heads);
    d_delta.Back(got, stream);
    d_sums.CopyTo(got_sums.data(), bytes, stream);
    ComputeDelta(output.view(), gradient.view(), delta.view(), 1);
    AddSinkGradient(lse.view(), delta.view(), sinks, sums);
    ExpectClose(got, delta, 1e-7f);
    for (int head = 0; head < heads; ++head)
      EXPECT_NEAR(got_sums[head], sums[head], 1e-6f * (1 + std::abs(sums[head])));
  }
}

TEST(CudaSteps, ClearZeroAddRound) {
  Random random("cuda/rows");
  Tensor output(DType::kFloat32, 9, 3, 5), lse(DType::kFloat32, 9, 3, 1), source(DType::kFloat32, 4, 2, 5);
  for (Tensor* tensor : {&output, &lse, &source}) tensor->FillNormal(random, 1.0f);
  Tensor rounded(DType::kBFloat16, 9, 3, 5);
  const DeviceStream stream;
  const OnDevice d_output(output, stream), d_lse(lse, stream), d_source(source, stream), d_rounded(rounded, stream);
  ASSERT_TRUE(cuda::ClearPartials(d_output.view(), d_lse.view(), {2, 5}, stream.get()).ok());
  ASSERT_TRUE(cuda::ZeroRows(d_output.view(), {7, 8}, stream.get()).ok());
  ASSERT_TRUE(cuda::AddRows(d_source.view(), 1, d_output.view(), 6, 1, 2, stream.get()).ok());
  ASSERT_TRUE(cuda::RoundRows(d_output.view(), d_rounded.view(), stream.get()).ok());
  Tensor got = output, got_lse = lse;
  d_output.Back(got, stream);
  d_lse.Back(got_lse, stream);
  d_rounded.Back(rounded, stream);
  for (int64_t row = 0; row < 9; ++row) {
    for (int head = 0; head < 3; ++head) {
      EXPECT_EQ(got_lse.Get(row, head, 0), row >= 2 && row < 5 ? -INFINITY : lse.Get(row, head, 0));
      for (int i = 0; i < 5; ++i) {
        float expected = (row >= 2 && row < 5) || row == 7 ? 0.0f : output.Get(row, head, i);
        if ((row == 6 || row == 7) && head >= 1) expected += source.Get(row - 5, head - 1, i);
        EXPECT_EQ(got.Get(row, head, i), expected) << row << " " << head << " " << i;
        EXPECT_EQ(rounded.Get(row, head, i), FloatFromBFloat16(BFloat16FromFloat(expected)));
      }
    }
  }
}

// Every alignment that the copy distinguishes.
TEST(CudaSteps, CopyRowsCopiesExactly) {
  const DeviceStream stream;
  for (const auto [row_bytes, from_pitch, to_pitch, shift] :
       {std::array{64, 96, 64, 0}, {12, 20, 16, 4}, {6, 10, 8, 2}, {7, 9, 8, 1}, {0, 4, 4, 0}}) {
    std::vector<std::byte> from(1024), to(1024, std::byte{0xee});
    for (size_t i = 0; i < from.size(); ++i) from[i] = static_cast<std::byte>(i * 37 % 251);
    DeviceMemory d_from(from.size()), d_to(to.size());
    d_from.CopyFrom(from.data(), from.size(), stream);
    d_to.CopyFrom(to.data(), to.size(), stream);
    ASSERT_TRUE(
        cuda::CopyRows(d_to.data() + shift, to_pitch, d_from.data() + 2 * shift, from_pitch, row_bytes, 9, stream.get())
            .ok());
    std::vector<std::byte> expected = to;
    for (int row = 0; row < 9; ++row) {
      std::memcpy(expected.data() + shift + row * to_pitch, from.data() + 2 * shift + row * from_pitch, row_bytes);
    }
    d_to.CopyTo(to.data(), to.size(), stream);
    EXPECT_EQ(to, expected) << row_bytes;
  }
}

TEST(CudaSteps, RefuseDtypes) {
  Tensor wide(DType::kFloat64, 2, 1, 3), lse(DType::kFloat32, 2, 1, 1), output(DType::kFloat32, 2, 1, 3);
  EXPECT_EQ(cuda::MergePartials(wide.view(), lse.view(), 0, output.view(), lse.view(), 0, 2, nullptr).message(),
            "cuda merge: accumulators are fp64; they must be fp32");
  EXPECT_EQ(cuda::FinishPartials(output.view(), lse.view(), nullptr, wide.view(), lse.view(), nullptr).message(),
            "cuda finish: the dtype is fp64; it must be fp32, bf16 or fp16");
}

}  // namespace
}  // namespace tessera::testing
