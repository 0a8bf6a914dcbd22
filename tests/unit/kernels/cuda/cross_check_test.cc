// Attention kernels against an independent path on the same device: both products by cuBLAS, the softmax between them
// in fp64 on the host. The two share no code and no arithmetic but the hardware's.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/cuda/linear.h"
#include "tests/unit/kernels/cuda/device_kernel.h"
#include "tests/unit/kernels/cuda/random_problem.h"

namespace tessera::testing {
namespace {

// [rows, heads, width] seen as [rows * heads, 1, width].
Tensor Rows(const Tensor& from, DType dtype) {
  const TensorView view = from.view();
  Tensor rows(dtype, view.rows * view.heads, 1, view.width);
  for (int64_t row = 0; row < view.rows; ++row) {
    for (int head = 0; head < view.heads; ++head) {
      for (int i = 0; i < view.width; ++i) rows.Set(row * view.heads + head, 0, i, from.Get(row, head, i));
    }
  }
  return rows;
}

class CublasAttention {
 public:
  CublasAttention() : cublas_(*cuda::Cublas::Create(workspace_.data(), kWorkspaceBytes)) {}

  // Of a problem with one key/value head and plain scores, whose query row i sees the first `visible(i)` keys.
  template <class Visible>
  Result Attend(const Problem& problem, const Visible& visible) {
    const int64_t keys = problem.key_tokens();
    const Tensor query = Rows(problem.query, problem.dtype), key = Rows(problem.key, problem.dtype);
    const Tensor value = Rows(problem.value, DType::kFloat32);
    Tensor weight(DType::kFloat32, query.view().rows, 1, static_cast<int>(keys));
    Multiply(key, /*transposed=*/false, query, problem.score.scale, weight);
    Result result;
    for (int64_t row = 0; row < weight.view().rows; ++row) {
      const int64_t seen = visible(row / problem.heads());
      double max = -INFINITY, sum = 0;
      for (int64_t j = 0; j < seen; ++j) max = std::max(max, double{weight.Get(row, 0, static_cast<int>(j))});
      for (int64_t j = 0; j < seen; ++j) sum += std::exp(double{weight.Get(row, 0, static_cast<int>(j))} - max);
      result.lse.push_back(max + std::log(sum));
      for (int64_t j = 0; j < keys; ++j) {
        const double score = weight.Get(row, 0, static_cast<int>(j));
        weight.Set(row, 0, static_cast<int>(j), j < seen ? static_cast<float>(std::exp(score - max) / sum) : 0.0f);
      }
    }
    Tensor output(DType::kFloat32, query.view().rows, 1, problem.v_width());
    Multiply(value, /*transposed=*/true, weight, 1.0f, output);
    for (int64_t row = 0; row < output.view().rows; ++row) {
      for (int i = 0; i < problem.v_width(); ++i) result.output.push_back(output.Get(row, 0, i));
    }
    return result;
  }

 private:
  static constexpr int64_t kWorkspaceBytes = 1 << 16;

  void Multiply(const Tensor& weights, bool transposed, const Tensor& x, float scale, Tensor& y) {
    const DeviceTensor on_device(weights.view(), stream_), d_x(x.view(), stream_), d_y(y.view(), stream_);
    const TensorView view = weights.view();
    const auto rows = static_cast<int>(view.rows);
    const cuda::LinearMap map{OnDevice(weights, on_device).data, view.dtype, 1, transposed ? rows : view.width,
                              transposed ? view.width : rows,    transposed};
    const Status status = cublas_.Apply(map, OnDevice(x, d_x), scale, OnDevice(y, d_y), stream_.get());
    ASSERT_TRUE(status.ok()) << status;
    d_y.CopyBack(y.view(), stream_);
  }

  const DeviceMemory workspace_{kWorkspaceBytes};
  const DeviceStream stream_;
  cuda::Cublas cublas_;
};

TEST(CudaCrossCheck, KernelsAgreeWithProductsByCublas) {
  CublasAttention cublas;
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16}) {
    for (const auto& [qk_width, v_width] : {std::pair{64, 64}, {96, 96}, {128, 128}, {192, 128}, {256, 256}}) {
      for (const bool causal : {false, true}) {
        const auto name = absl::StrCat("cross/", std::string(Name(dtype)), "/", qk_width, "/", causal);
        SCOPED_TRACE(name);
        Random random(name);
        const int64_t rows = random.Integer(60, 150), keys = random.Integer(rows, 200);
        Problem problem = MakeProblem({dtype, rows, keys, 3, 1, qk_width, v_width}, random);
        problem.bands = {{{0, rows}, {0, keys}}};
        if (causal) problem.bands[0] = {{0, rows}, {0, keys}, -kUnboundedDiagonal, keys - rows};
        const auto kernel = cuda::FindAttendKernel({dtype, qk_width, v_width, ComputeCapability()});
        ASSERT_TRUE(kernel.ok()) << kernel.status();
        const Result result = Compute(DeviceKernel(**kernel), problem);
        const Result expected =
            cublas.Attend(problem, [&](int64_t row) { return causal ? row + keys - rows + 1 : keys; });
        ASSERT_EQ(result.output.size(), expected.output.size());
        std::vector<double> difference;
        for (size_t i = 0; i < result.output.size(); ++i) difference.push_back(result.output[i] - expected.output[i]);
        // Weights and outputs are each rounded once to the dtype by the kernels; cuBLAS's path keeps both in fp32.
        const double epsilon = dtype == DType::kBFloat16 ? 0x1p-8 : 0x1p-11;
        EXPECT_LT(Rms(difference), epsilon * Rms(expected.output));
        for (size_t i = 0; i < result.lse.size(); ++i) EXPECT_NEAR(result.lse[i], expected.lse[i], 2e-5) << i;
      }
    }
  }
}

}  // namespace
}  // namespace tessera::testing
