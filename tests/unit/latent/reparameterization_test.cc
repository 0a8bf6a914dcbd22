#include "runtime/latent/reparameterization.h"

#include <gmock/gmock.h>

#include <limits>
#include <numeric>

#include "tests/unit/latent/layer.h"

namespace tessera {
namespace {

using latent_test::RandomLayer;
using latent_test::RandomOrthogonal;
using latent_test::TestShape;
using ::testing::HasSubstr;

Matrix64 Product(const Matrix64& a, const Matrix64& b, bool transpose_a) {
  const int64_t rows = transpose_a ? a.columns : a.rows, inner = transpose_a ? a.rows : a.columns;
  Matrix64 c{rows, b.columns, std::vector<double>(rows * b.columns)};
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < b.columns; ++j) {
      for (int64_t k = 0; k < inner; ++k) c(i, j) += (transpose_a ? a(k, i) : a(i, k)) * b(k, j);
    }
  }
  return c;
}

double DistanceFromIdentity(const Matrix64& matrix) {
  double worst = 0;
  for (int64_t i = 0; i < matrix.rows; ++i) {
    for (int64_t j = 0; j < matrix.columns; ++j) worst = std::max(worst, std::abs(matrix(i, j) - (i == j)));
  }
  return worst;
}

// Latents of unequal directions, with a mean.
std::vector<float> Latents(int64_t tokens, int latent, uint64_t seed) {
  std::mt19937_64 generator(seed);
  std::normal_distribution<double> normal;
  const Matrix64 mixed = RandomOrthogonal(latent, seed + 1);
  std::vector<float> values;
  for (int64_t t = 0; t < tokens; ++t) {
    std::vector<double> row(latent);
    for (int i = 0; i < latent; ++i) {
      const double size = (normal(generator) + 0.5) * std::pow(0.7, i);
      for (int c = 0; c < latent; ++c) row[c] += size * mixed(i, c);
    }
    values.insert(values.end(), row.begin(), row.end());
  }
  return values;
}

LatentMoment MomentOf(const std::vector<float>& latents, int latent) {
  LatentMoment moment(latent);
  // In pieces, as a runner delivers them.
  const size_t cut = latents.size() / latent / 3 * latent;
  moment.Add(std::span(latents).first(cut));
  moment.Add(std::span(latents).subspan(cut));
  return moment;
}

TEST(Hadamard, IsOrthogonalAndEqualised) {
  for (const int latent : {1, 2, 16, 128, 512}) {
    const auto basis = HadamardBasis(latent, 7);
    ASSERT_TRUE(basis.ok()) << basis.status();
    EXPECT_TRUE(CheckOrthogonal(*basis, latent).ok());
    for (const double value : basis->values) EXPECT_NEAR(std::abs(value), 1 / std::sqrt(latent), 1e-15);
  }
}

TEST(Hadamard, RoundTripIsTheIdentity) {
  const auto basis = HadamardBasis(64, 3);
  ASSERT_TRUE(basis.ok()) << basis.status();
  EXPECT_LE(DistanceFromIdentity(Product(*basis, *basis, /*transpose_a=*/true)), 1e-14);
}

TEST(Hadamard, SeedsChooseSigns) {
  EXPECT_EQ(HadamardBasis(64, 3)->values, HadamardBasis(64, 3)->values);
  EXPECT_NE(HadamardBasis(64, 3)->values, HadamardBasis(64, 4)->values);
}

TEST(Hadamard, NeedsAPowerOfTwo) {
  EXPECT_THAT(std::string(HadamardBasis(96, 1).status().message()), HasSubstr("width 96; allowed: latent widths that"));
}

TEST(Moments, AreSumsOverTokens) {
  const int latent = 8;
  const std::vector<float> latents = Latents(40, latent, 1);
  const LatentMoment moment = MomentOf(latents, latent);
  EXPECT_EQ(moment.tokens(), 40);
  double sum = 0, total = 0;
  for (int t = 0; t < 40; ++t) {
    sum += double{latents[t * latent + 2]} * latents[t * latent + 5];
    total += latents[t * latent + 5];
  }
  EXPECT_NEAR(moment.sum()(2, 5), sum, 1e-12);
  EXPECT_NEAR(moment.sum()(5, 2), sum, 1e-12);
  EXPECT_NEAR(moment.total()[5], total, 1e-12);
}

TEST(Moments, MadeElsewhereAreChecked) {
  const Matrix64 good = IdentityBasis(2);
  EXPECT_TRUE(LatentMoment::FromSums(good, {0, 0}, 5).ok());
  EXPECT_THAT(std::string(LatentMoment::FromSums(good, {0}, 5).status().message()), HasSubstr("[C, C] and [C]"));
  EXPECT_THAT(std::string(LatentMoment::FromSums(good, {0, 0}, 0).status().message()), HasSubstr("tokens is 0"));
  EXPECT_THAT(std::string(LatentMoment::FromSums({2, 2, {1, 2, 3, 4}}, {0, 0}, 5).status().message()),
              HasSubstr("not symmetric"));
  EXPECT_THAT(std::string(LatentMoment::FromSums({2, 2, {1, NAN, NAN, 4}}, {0, 0}, 5).status().message()),
              HasSubstr("not finite"));
}

TEST(Pca, ColumnsAreUncorrelatedAndDescending) {
  const int latent = 12;
  const LatentMoment moment = MomentOf(Latents(300, latent, 2), latent);
  const auto basis = PcaBasis(moment);
  ASSERT_TRUE(basis.ok()) << basis.status();
  EXPECT_TRUE(CheckOrthogonal(*basis, latent).ok());
  const Matrix64 seen = Product(*basis, Product(moment.sum(), *basis, false), true);
  for (int i = 0; i < latent; ++i) {
    for (int j = 0; j < latent; ++j) {
      if (i != j) {
        EXPECT_NEAR(seen(i, j), 0, 1e-9 * seen(0, 0));
      }
    }
    if (i > 0) {
      EXPECT_LE(seen(i, i), seen(i - 1, i - 1));
    }
  }
  for (int groups : {2, 3, 4}) {
    const std::vector<double> shares = EnergyShares(moment, *basis, groups);
    EXPECT_TRUE(std::ranges::is_sorted(shares, std::greater<>()));
    // No basis puts more energy into the first columns.
    for (uint64_t seed = 0; seed < 5; ++seed) {
      EXPECT_GE(shares[0], EnergyShares(moment, RandomOrthogonal(latent, seed), groups)[0]);
    }
  }
}

TEST(Pca, NeedsATokenPerColumn) {
  const LatentMoment moment = MomentOf(Latents(11, 12, 3), 12);
  EXPECT_THAT(std::string(PcaBasis(moment).status().message()),
              HasSubstr("PCA over 11 tokens; needed: at least the 12 columns"));
}

TEST(EnergyShares, AddUpToOne) {
  const LatentMoment moment = MomentOf(Latents(100, 12, 4), 12);
  for (const Matrix64& basis : {IdentityBasis(12), RandomOrthogonal(12, 5), *PcaBasis(moment)}) {
    for (const int groups : {1, 2, 3, 4, 6, 12}) {
      const std::vector<double> shares = EnergyShares(moment, basis, groups);
      ASSERT_EQ(std::ssize(shares), groups);
      EXPECT_NEAR(std::accumulate(shares.begin(), shares.end(), 0.0), 1.0, 1e-12);
      EXPECT_GE(*std::ranges::min_element(shares), 0.0);
    }
  }
  EXPECT_EQ(EnergyShares(LatentMoment(8), IdentityBasis(8), 4), std::vector<double>(4, 0.25));
}

TEST(Orthogonality, IsChecked) {
  EXPECT_TRUE(CheckOrthogonal(RandomOrthogonal(9, 1), 9).ok());
  EXPECT_THAT(std::string(CheckOrthogonal(RandomOrthogonal(9, 1), 8).message()),
              HasSubstr("the basis is [9, 9]; needed: [8, 8]"));
  Matrix64 off = RandomOrthogonal(9, 1);
  off(3, 4) += 1e-8;
  EXPECT_THAT(std::string(CheckOrthogonal(off, 9).message()), HasSubstr("not orthogonal"));
  off(3, 4) = std::numeric_limits<double>::quiet_NaN();
  EXPECT_FALSE(CheckOrthogonal(off, 9).ok());
}

TEST(Transforms, HaveNames) {
  for (const auto transform :
       {LatentTransform::kIdentity, LatentTransform::kHadamard, LatentTransform::kPca, LatentTransform::kCustom}) {
    EXPECT_EQ(*ParseLatentTransform(Name(transform)), transform);
  }
  EXPECT_THAT(std::string(ParseLatentTransform("fourier").status().message()),
              HasSubstr("\"fourier\" is unknown; allowed: identity, hadamard, pca, matrix"));
}

// Against logits computed pair by pair from the layer's own weights.
TEST(GroupFits, AgreeWithLogitsPairByPair) {
  const MlaShape shape = TestShape();
  RandomLayer layer(shape, 6);
  constexpr int kTokens = 30;
  const std::vector<float> latents = Latents(kTokens, shape.latent, 7);
  std::vector<float> queries(kTokens * shape.heads * shape.nope);
  for (float& value : queries) value = static_cast<float>(layer.Normal());
  const LatentMoment moment = MomentOf(latents, shape.latent);
  QueryMoment query_moment(shape.heads, shape.nope);
  query_moment.Add(queries);
  EXPECT_EQ(query_moment.tokens(), kTokens);
  const Matrix64 absorbed = query_moment.Absorbed(shape, layer.weights);

  for (const Matrix64& basis : {IdentityBasis(8), RandomOrthogonal(8, 8)}) {
    const LatentWeights changed = Reparameterize(shape, layer.weights, basis);
    for (const int groups : {1, 2, 4}) {
      const std::vector<GroupFit> fits = FitGroups(moment, absorbed, basis, groups);
      ASSERT_EQ(std::ssize(fits), groups);
      for (int group = 0; group < groups; ++group) {
        double full_full = 0, full_part = 0, part_part = 0;
        for (int q = 0; q < kTokens; ++q) {
          for (int head = 0; head < shape.heads; ++head) {
            std::vector<double> full(kTokens), part(kTokens);
            for (int t = 0; t < kTokens; ++t) {
              for (int c = 0; c < shape.latent; ++c) {
                double key = 0, query = 0;
                for (int d = 0; d < shape.latent; ++d) key += latents[t * shape.latent + d] * basis(d, c);
                for (int n = 0; n < shape.nope; ++n) {
                  query += queries[(q * shape.heads + head) * shape.nope + n] *
                           changed.kv_up(head * (shape.nope + shape.value) + n, c);
                }
                full[t] += query * key;
                if (c / (shape.latent / groups) == group) part[t] += query * key;
              }
            }
            const double full_mean = std::accumulate(full.begin(), full.end(), 0.0) / kTokens;
            const double part_mean = std::accumulate(part.begin(), part.end(), 0.0) / kTokens;
            for (int t = 0; t < kTokens; ++t) {
              full_full += std::pow(full[t] - full_mean, 2);
              full_part += (full[t] - full_mean) * (part[t] - part_mean);
              part_part += std::pow(part[t] - part_mean, 2);
            }
          }
        }
        const GroupFit& fit = fits[group];
        const double mu = full_part / part_part;
        EXPECT_NEAR(fit.mu, mu, 1e-6);
        EXPECT_NEAR(fit.error, std::sqrt(std::max(0.0, full_full - 2 * full_part + part_part) / full_full), 1e-6);
        EXPECT_NEAR(fit.fitted_error, std::sqrt(std::max(0.0, 1 - full_part * full_part / part_part / full_full)),
                    1e-6);
        EXPECT_LE(fit.fitted_error, fit.error + 1e-12);
      }
      if (groups == 1) {
        EXPECT_NEAR(fits[0].error, 0, 1e-6);
      }
    }
  }
}

TEST(Groups, ThatDivideAreListed) {
  EXPECT_THAT(PossibleGroups(12, 100), ::testing::ElementsAre(2, 3, 4, 6, 12));
  EXPECT_THAT(PossibleGroups(512, 8), ::testing::ElementsAre(2, 4, 8));
  EXPECT_TRUE(PossibleGroups(7, 6).empty());
}

}  // namespace
}  // namespace tessera
