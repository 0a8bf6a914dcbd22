// The moments of latents on a GPU against the host's, and the PCA basis they lead to.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "runtime/latent/cuda/moment.h"
#include "tests/support/one_gpu.h"
#include "tests/support/problems.h"

namespace tessera {
namespace {

class CudaMoment : public testing::OneGpuTest {
 protected:
  StatusOr<CudaLatentMoment> Create(int latent, DType dtype) const {
    return CudaLatentMoment::Create(*device_, latent, dtype, stream_.handle());
  }
  // Adds [rows, latent] values, which the dtype holds exactly, as rows `stride` elements apart with NaN between them.
  Status Add(CudaLatentMoment& moment, std::span<const float> values, int latent, DType dtype, int64_t stride) const {
    const int64_t rows = std::ssize(values) / latent;
    std::vector<std::byte> bytes(std::max<int64_t>(1, rows * stride) * SizeInBytes(dtype));
    for (int64_t i = 0; i < rows * stride; ++i) {
      const bool inside = i % stride < latent;
      StoreFromFloat(bytes.data(), dtype, i,
                     inside ? values[i / stride * latent + i % stride] : std::numeric_limits<float>::quiet_NaN());
    }
    TESSERA_ASSIGN_OR_RETURN(const DeviceBuffer memory,
                             DeviceBuffer::Allocate(*device_, std::ssize(bytes), "latents", stream_.handle()));
    TESSERA_RETURN_IF_ERROR(CopyAsync(memory.data(), bytes.data(), std::ssize(bytes), stream_.handle()));
    ConstTensorView view = ConstTensorView::Dense(memory.data(), dtype, rows, 1, latent);
    view.row_stride = stride;
    view.space = MemorySpace::kDevice;
    TESSERA_RETURN_IF_ERROR(moment.Add(view));
    return stream_.Synchronize("adding latents");
  }
};

// Latents whose columns have different sizes and lean on each other, with a mean.
std::vector<float> Latents(std::string_view name, int64_t rows, int latent, DType dtype) {
  std::mt19937_64 generator = testing::GeneratorFor(name);
  std::normal_distribution<double> normal;
  std::vector<float> values(rows * latent);
  std::byte rounded[4];
  for (int64_t row = 0; row < rows; ++row) {
    double shared = normal(generator);
    for (int i = 0; i < latent; ++i) {
      shared = 0.5 * shared + normal(generator);
      StoreFromFloat(rounded, dtype, 0, static_cast<float>(shared / (1 + i % 5) + 0.25));
      values[row * latent + i] = LoadAsFloat(rounded, dtype, 0);
    }
  }
  return values;
}

// fp32 adds up at most kTokensPerSum products, each rounded: its error is far below the moment's largest element times
// the square root of that many half-ulps.
TEST_F(CudaMoment, AgreesWithTheHostsForEveryDtypeAndPiece) {
  constexpr int64_t kMost = CudaLatentMoment::kTokensPerSum;
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
    for (const auto& [latent, pieces] : std::initializer_list<std::pair<int, std::vector<int64_t>>>{
             {1, {3}}, {33, {1, 0, 40, 7}}, {64, {128}}, {5, {kMost - 1, 2, kMost, 3}}, {3, {2 * kMost + 1}}}) {
      SCOPED_TRACE(absl::StrCat(std::string(Name(dtype)), " ", latent, ", ", pieces.size(), " pieces"));
      StatusOr<CudaLatentMoment> moment = Create(latent, dtype);
      ASSERT_TRUE(moment.ok()) << moment.status();
      LatentMoment expected(latent);
      for (size_t i = 0; i < pieces.size(); ++i) {
        const auto name = absl::StrCat("moment/", std::string(Name(dtype)), "/", latent, "/", i);
        const std::vector<float> values = Latents(name, pieces[i], latent, dtype);
        expected.Add(values);
        ASSERT_EQ(Add(*moment, values, latent, dtype, latent + static_cast<int64_t>(i)), absl::OkStatus());
      }
      for (int again = 0; again < 2; ++again) {  // taking leaves everything for more
        const StatusOr<LatentMoment> taken = moment->Take();
        ASSERT_TRUE(taken.ok()) << taken.status();
        ASSERT_EQ(taken->tokens(), expected.tokens());
        double largest = 0;
        for (int i = 0; i < latent; ++i) largest = std::max(largest, expected.sum()(i, i));
        const double bound =
            1e-6 * std::sqrt(std::min<double>(kMost, static_cast<double>(expected.tokens()))) * largest;
        for (int i = 0; i < latent; ++i) {
          EXPECT_NEAR(taken->total()[i], expected.total()[i],
                      1e-6 * std::sqrt(static_cast<double>(expected.tokens()) * expected.sum()(i, i)) * latent);
          for (int j = 0; j < latent; ++j) {
            ASSERT_NEAR(taken->sum()(i, j), expected.sum()(i, j), bound) << i << ", " << j;
            ASSERT_EQ(taken->sum()(i, j), taken->sum()(j, i));
          }
        }
      }
    }
  }
}

// What the moment is for: the first columns of the basis hold as much of the latents as the exact ones'.
TEST_F(CudaMoment, LeadsToTheSamePrincipalComponents) {
  constexpr int kLatent = 16, kTokens = 500;
  const std::vector<float> values = Latents("moment/pca", kTokens, kLatent, DType::kBFloat16);
  LatentMoment exact(kLatent);
  exact.Add(values);
  StatusOr<CudaLatentMoment> moment = Create(kLatent, DType::kBFloat16);
  ASSERT_TRUE(moment.ok()) << moment.status();
  ASSERT_EQ(Add(*moment, values, kLatent, DType::kBFloat16, kLatent), absl::OkStatus());
  const StatusOr<LatentMoment> taken = moment->Take();
  ASSERT_TRUE(taken.ok()) << taken.status();
  const StatusOr<Matrix64> basis = PcaBasis(*taken), expected = PcaBasis(exact);
  ASSERT_TRUE(basis.ok() && expected.ok()) << basis.status() << expected.status();
  const auto energy = [&](const Matrix64& u, int column) {
    double sum = 0;
    for (int i = 0; i < kLatent; ++i) {
      for (int j = 0; j < kLatent; ++j) sum += u(i, column) * exact.sum()(i, j) * u(j, column);
    }
    return sum;
  };
  for (int column = 0; column < kLatent; ++column) {
    EXPECT_NEAR(energy(*basis, column), energy(*expected, column), 1e-5 * energy(*expected, 0)) << column;
  }
}

TEST_F(CudaMoment, RefusesWhatDoesNotFit) {
  EXPECT_EQ(Create(0, DType::kBFloat16).status().message(), "latent is 0; allowed: 1 or more");
  EXPECT_EQ(Create(4, DType::kFloat64).status().message(), "the latents' dtype is fp64; it must be fp32, bf16 or fp16");
  StatusOr<CudaLatentMoment> moment = Create(4, DType::kBFloat16);
  ASSERT_TRUE(moment.ok()) << moment.status();
  EXPECT_EQ(moment->Take().status().message(), "tokens is 0; allowed: 1 or more");
  EXPECT_EQ(moment->Add(ConstTensorView::Dense(nullptr, DType::kFloat16, 3, 1, 4)).message(),
            "latents are [3, 1, 4] fp16; needed: [rows, 1, 4] bf16");
  EXPECT_EQ(moment->Add(ConstTensorView::Dense(nullptr, DType::kBFloat16, 3, 2, 4)).message(),
            "latents are [3, 2, 4] bf16; needed: [rows, 1, 4] bf16");
  ConstTensorView tight = ConstTensorView::Dense(nullptr, DType::kBFloat16, 3, 1, 4);
  tight.row_stride = 3;
  EXPECT_EQ(moment->Add(tight).message(),
            "cuda linear: x has 3 rows, a row every 3 elements; rows are at most 2147483647, and 4 to 2147483647 "
            "elements apart");
  const std::vector<float> infinite = {1, 2, std::numeric_limits<float>::infinity(), 4};
  ASSERT_EQ(Add(*moment, infinite, 4, DType::kBFloat16, 4), absl::OkStatus());
  EXPECT_EQ(moment->Take().status().message(), "moments hold a value that is not finite");
}

}  // namespace
}  // namespace tessera
