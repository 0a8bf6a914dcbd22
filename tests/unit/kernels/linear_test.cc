// Packed products against fp64: every row count and layout, from several threads at once.
#include "kernels/linear.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <thread>

#include "tests/unit/kernels/problem.h"

namespace tessera::testing {
namespace {

struct Weights {
  Weights(int batch, int64_t out, int64_t in, DType dtype, bool transposed, Random& random)
      : out(out), in(in), transposed(transposed) {
    for (int b = 0; b < batch; ++b) {
      bytes.emplace_back(static_cast<size_t>(out * in) * SizeInBytes(dtype));
      for (int64_t i = 0; i < out * in; ++i) StoreFromFloat(bytes.back().data(), dtype, i, random.Normal());
    }
    for (auto& b : bytes) views.push_back({b.data(), dtype, transposed ? in : out, transposed ? out : in});
  }
  float At(int b, int64_t o, int64_t i) const { return transposed ? views[b].At(i, o) : views[b].At(o, i); }

  int64_t out, in;
  bool transposed;
  std::vector<std::vector<std::byte>> bytes;
  std::vector<MatrixView> views;
};

// Inputs in rows with NaN between them, and outputs that start as NaN.
struct Rows {
  Rows(int64_t rows, int64_t width, int64_t gap, Random& random) : stride(width + gap) {
    x.assign(static_cast<size_t>(rows * stride), std::numeric_limits<float>::quiet_NaN());
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t i = 0; i < width; ++i) x[r * stride + i] = random.Normal();
    }
  }
  int64_t stride;
  std::vector<float> x;
};

void ExpectExact(const Linear& linear, const Weights& weights, DType compute, const Rows& rows, int64_t count,
                 const std::vector<float>& y) {
  // Relative to sqrt(in): both factors are standard normal. bf16 rounds each of them by 2^-9 at most.
  const double bound = (compute == DType::kBFloat16 ? 1e-6 : 2e-6) * static_cast<double>(weights.in) + 1e-6;
  const auto round = [&](float v) { return compute == DType::kBFloat16 ? FloatFromBFloat16(BFloat16FromFloat(v)) : v; };
  for (int64_t r = 0; r < count; ++r) {
    for (int b = 0; b < linear.batch(); ++b) {
      for (int64_t o = 0; o < weights.out; ++o) {
        double sum = 0;
        for (int64_t i = 0; i < weights.in; ++i) {
          sum += double{round(weights.At(b, o, i))} * round(rows.x[r * rows.stride + b * weights.in + i]);
        }
        const float got = y[static_cast<size_t>((r * linear.batch() + b) * weights.out + o)];
        ASSERT_NEAR(got, sum, bound) << "row " << r << " entry " << b << " column " << o;
      }
    }
  }
}

bool Refused(const StatusOr<Linear>& linear) {
  return linear.status().code() == absl::StatusCode::kUnimplemented;
}

TEST(Linear, AgreesWithFp64AtEveryRowCountDtypeAndLayout) {
  Random random("linear");
  for (DType compute : {DType::kFloat32, DType::kBFloat16}) {
    for (DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
      for (const auto& [batch, out, in] : {std::tuple{1, 33, 70}, {3, 19, 37}, {5, 1, 1}}) {
        const Weights weights(batch, out, in, dtype, random.OneIn(2), random);
        const auto linear = Linear::Create(weights.views, compute, weights.transposed);
        if (compute == DType::kBFloat16 && Refused(linear)) continue;
        ASSERT_TRUE(linear.ok()) << linear.status();
        EXPECT_EQ(linear->batch(), batch);
        EXPECT_EQ(linear->in(), in);
        EXPECT_EQ(linear->out(), out);
        EXPECT_GE(linear->weight_bytes(), batch * out * in * static_cast<int64_t>(SizeInBytes(compute)));
        for (int64_t count : {0, 1, 2, 9, 17, 31}) {
          const Rows rows(count, batch * in, random.OneIn(2) ? 0 : 5, random);
          std::vector<float> y(static_cast<size_t>(count * batch * out), std::numeric_limits<float>::quiet_NaN());
          for (int threads : {1, 3}) {
            const Status status = linear->Apply(rows.x.data(), count, rows.stride, y.data(), threads);
            ASSERT_TRUE(status.ok()) << status;
            ExpectExact(*linear, weights, compute, rows, count, y);
          }
        }
      }
    }
  }
}

TEST(Linear, WorksOffManyRowsInPasses) {
  Random random("passes");
  const Weights weights(2, 3, 5, DType::kFloat32, false, random);
  const auto linear = Linear::Create(weights.views, DType::kFloat32);
  ASSERT_TRUE(linear.ok()) << linear.status();
  const Rows rows(2100, 10, 0, random);
  std::vector<float> y(2100 * 6, std::numeric_limits<float>::quiet_NaN());
  ASSERT_TRUE(linear->Apply(rows.x.data(), 2100, y.data(), 2).ok());
  ExpectExact(*linear, weights, DType::kFloat32, rows, 2100, y);
}

// Ranks are threads of one process: each applies the same weights, with its own number of rows.
TEST(Linear, IsSafeFromSeveralThreads) {
  Random random("threads");
  for (int batch : {1, 4}) {
    const Weights weights(batch, 65, 130, DType::kBFloat16, false, random);
    for (DType compute : {DType::kFloat32, DType::kBFloat16}) {
      const auto linear = Linear::Create(weights.views, compute);
      if (Refused(linear)) continue;
      ASSERT_TRUE(linear.ok()) << linear.status();
      std::vector<std::thread> ranks;
      for (int rank = 0; rank < 4; ++rank) {
        ranks.emplace_back([&, rank] {
          Random mine(absl::StrCat("rank ", rank));
          for (int step = 0; step < 10; ++step) {
            const int64_t count = mine.Integer(1, 40);
            const Rows rows(count, batch * 130, rank, mine);
            std::vector<float> y(static_cast<size_t>(count * batch * 65));
            ASSERT_TRUE(linear->Apply(rows.x.data(), count, rows.stride, y.data(), 1 + rank % 2).ok());
            ExpectExact(*linear, weights, compute, rows, count, y);
          }
        });
      }
      for (std::thread& rank : ranks) rank.join();
    }
  }
}

TEST(Linear, RefusesWhatItCannotServe) {
  Random random("refusals");
  const Weights weights(2, 3, 5, DType::kFloat32, false, random);
  const auto message = [](const StatusOr<Linear>& linear) {
    EXPECT_EQ(linear.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(linear.status().message());
  };
  EXPECT_NE(message(Linear::Create({}, DType::kFloat32)).find("no weight matrix"), std::string::npos);
  EXPECT_NE(message(Linear::Create(weights.views, DType::kFloat16)).find("fp32 or bf16"), std::string::npos);
  std::vector<MatrixView> views = weights.views;
  views[1].columns = 4;
  EXPECT_NE(message(Linear::Create(views, DType::kFloat32)).find("matrix 1 is [3, 4], the first one [3, 5]"),
            std::string::npos);
  views[1] = {nullptr, DType::kFloat32, 3, 5};
  EXPECT_NE(message(Linear::Create(views, DType::kFloat32)).find("matrix 1 is missing"), std::string::npos);

  const auto linear = Linear::Create(weights.views, DType::kFloat32);
  ASSERT_TRUE(linear.ok());
  float x[20] = {}, y[12] = {};
  EXPECT_NE(linear->Apply(x, 2, 9, y, 1).message().find("9 elements apart, but have 10"), std::string_view::npos);
  EXPECT_NE(linear->Apply(x, -1, 10, y, 1).message().find("-1 rows"), std::string_view::npos);
  EXPECT_NE(linear->Apply(x, 2, 10, y, 0).message().find("threads"), std::string_view::npos);
}

}  // namespace
}  // namespace tessera::testing
