// Dense maps on the device against fp64: every dtype, batches, row counts and rows that lie apart.
#include "kernels/cuda/linear.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <optional>

#include "tests/unit/kernels/cuda/device_kernel.h"
#include "tests/unit/kernels/problem.h"

namespace tessera::testing {
namespace {

class CudaLinear : public ::testing::Test {
 protected:
  static constexpr int64_t kWorkspaceBytes = 1 << 16;
  void SetUp() override {
    StatusOr<cuda::Cublas> made = cuda::Cublas::Create(workspace_.data(), kWorkspaceBytes);
    ASSERT_TRUE(made.ok()) << made.status();
    cublas_.emplace(*std::move(made));
  }

  DeviceMemory workspace_{kWorkspaceBytes};
  std::optional<cuda::Cublas> cublas_;
};

TEST_F(CudaLinear, AgreesWithFp64AtEveryDtypeRowCountAndLayout) {
  const DeviceStream streams[2];  // a new stream needs the workspace anew
  int turn = 0;
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
    for (const auto& [batch, out, in] : {std::tuple{1, 33, 70}, {3, 19, 37}, {5, 1, 1}, {0, 3, 4}}) {
      for (const int rows : {0, 1, 2, 9, 31}) {
        const DeviceStream& stream = streams[turn++ % 2];
        Random random(absl::StrCat("cuda/linear/", turn));
        const bool transposed = random.OneIn(2);
        const float scale = random.OneIn(2) ? 1.0f : 0.75f;
        SCOPED_TRACE(absl::StrCat(std::string(Name(dtype)), " ", batch, " of ", out, " x ", in, ", ", rows, " rows",
                                  transposed ? ", transposed" : "", ", scale ", scale));
        // As heads of a tensor: [batch, out, in] has rows of `in`.
        Tensor weights(dtype, batch, transposed ? in : out, transposed ? out : in);
        Tensor x(dtype, rows, batch, in, &random), y(DType::kFloat32, rows, batch, out, &random);
        weights.FillNormal(random, 1.0f);
        x.FillNormal(random, 1.0f);
        Tensor expected = y;  // what lies between the rows stays
        const DeviceTensor d_weights(weights.view(), stream), d_x(x.view(), stream), d_y(y.view(), stream);
        const cuda::LinearMap map{OnDevice(weights, d_weights).data, dtype, batch, in, out, transposed};
        const Status status = cublas_->Apply(map, OnDevice(x, d_x), scale, OnDevice(y, d_y), stream.get());
        ASSERT_TRUE(status.ok()) << status;
        d_y.CopyBack(y.view(), stream);
        // Both factors are standard normal; sums are fp32.
        const double bound = 2e-6 * in + 1e-6;
        for (int64_t row = 0; row < rows; ++row) {
          for (int b = 0; b < batch; ++b) {
            for (int o = 0; o < out; ++o) {
              double sum = 0;
              for (int i = 0; i < in; ++i) {
                sum += double{transposed ? weights.Get(b, i, o) : weights.Get(b, o, i)} * x.Get(row, b, i);
              }
              ASSERT_NEAR(y.Get(row, b, o), scale * sum, bound) << "row " << row << " map " << b << " column " << o;
              expected.Set(row, b, o, y.Get(row, b, o));
            }
          }
        }
        EXPECT_EQ(y.bytes(), expected.bytes());
      }
    }
  }
}

TEST_F(CudaLinear, RefusesWhatDoesNotFit) {
  const cuda::LinearMap map{nullptr, DType::kBFloat16, 2, 3, 5, false};
  Tensor x(DType::kBFloat16, 4, 2, 3), y(DType::kFloat32, 4, 2, 5);
  const auto refusal = [&](const cuda::LinearMap& map, const ConstTensorView& x, const TensorView& y) {
    const Status status = cublas_->Apply(map, x, 1.0f, y, nullptr);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    return std::string(status.message());
  };
  EXPECT_EQ(refusal({nullptr, DType::kFloat64, 2, 3, 5, false}, x.view(), y.view()),
            "cuda linear: the dtype is fp64; it must be fp32, bf16 or fp16");
  EXPECT_EQ(refusal(map, y.view(), y.view()), "cuda linear: x is [4, 2, 5] fp32; the map needs [rows, 2, 3] bf16");
  EXPECT_EQ(refusal(map, x.view(), Tensor(DType::kBFloat16, 4, 2, 5).view()),
            "cuda linear: y is [4, 2, 5] bf16; the map needs [rows, 2, 5] fp32");
  EXPECT_EQ(refusal(map, x.view(), Tensor(DType::kFloat32, 3, 2, 5).view()), "cuda linear: x has 4 rows, y has 3");
  TensorView tight = x.view();
  tight.row_stride = 2;
  EXPECT_EQ(refusal(map, tight, y.view()),
            "cuda linear: x has 4 rows, a row every 2 elements; rows are at most 2147483647, and 3 to 2147483647 "
            "elements apart");
}

// cuBLAS's own refusal, as the stand-in's: it knows which memory is the device's. A GPU would fault.
TEST_F(CudaLinear, NamesTheCallAndTheShape) {
  if (std::getenv("VGPU_ARCH") == nullptr) GTEST_SKIP() << "needs the virtual GPU";
  Tensor x(DType::kFloat16, 4, 1, 3), y(DType::kFloat32, 4, 1, 5);
  const Status status = cublas_->Apply({x.view().data, DType::kFloat16, 1, 3, 5, false}, x.view(), 1.0f, y.view(), {});
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(),
            "cublasGemmEx of 4 rows, 1 maps from 3 to 5 in fp16: an unsupported value or parameter was passed to the "
            "function (cublasStatus_t 7)");
}

// On a GPU with less memory than a handle takes.
TEST(CudaLinearWithoutMemory, IsResourceExhausted) {
  if (std::getenv("VGPU_MEMORY_BYTES") == nullptr) GTEST_SKIP() << "needs a virtual GPU of little memory";
  const Status status = cuda::Cublas::Create(nullptr, 0).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_EQ(status.message(), "cublasCreate: the resource allocation failed (cublasStatus_t 3)");
}

}  // namespace
}  // namespace tessera::testing
