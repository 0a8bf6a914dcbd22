// The identities that latent attention and its cut must satisfy, on the fp64 oracle.
#include <gmock/gmock.h>

#include "tests/unit/latent/layer.h"

namespace tessera {
namespace {

using latent_test::Positions;
using latent_test::RandomLayer;
using latent_test::RandomOrthogonal;
using latent_test::RelativeError;
using latent_test::TestShape;
using reference::Dense;
using reference::MlaForm;
using reference::ToDense;
using reference::TplaOptions;

constexpr double kExact = 1e-13;  // rounding of fp64 over sums this short
constexpr int64_t kTokens = 11;

Dense Mla(const MlaShape& shape, const reference::MlaWeights64& weights, const Dense& hidden, int64_t queries,
          MlaForm form = MlaForm::kExpanded) {
  auto output = reference::MlaLayer(shape, weights, hidden, Positions(hidden.rows, 3), queries, form);
  EXPECT_TRUE(output.ok()) << output.status();
  return *std::move(output);
}
Dense Tpla(const MlaShape& shape, const reference::MlaWeights64& weights, const Dense& hidden, int64_t queries,
           const TplaOptions& options) {
  auto output = reference::TplaLayer(shape, weights, hidden, Positions(hidden.rows, 3), queries, options);
  EXPECT_TRUE(output.ok()) << output.status();
  return *std::move(output);
}
TplaOptions Groups(int groups) {
  TplaOptions options;
  options.groups = groups;
  return options;
}

// Shapes that differ in everything a formula could forget.
std::vector<MlaShape> Shapes() {
  std::vector<MlaShape> shapes = {TestShape(), TestShape(7), TestShape()};
  shapes[1].rope_options.layout = RopeLayout::kInterleaved;
  shapes[2].rope_options.yarn = YarnScaling{40, 64, 32, 1, 0.9, 0.7};
  shapes[2].rope = 12;
  return shapes;
}

TEST(MlaOracle, AbsorbedEqualsExpanded) {
  for (const MlaShape& shape : Shapes()) {
    RandomLayer layer(shape, 1);
    const Dense hidden = layer.Hidden(kTokens);
    const auto weights = ToDense(layer.weights);
    const Dense expanded = Mla(shape, weights, hidden, kTokens);
    EXPECT_LE(RelativeError(Mla(shape, weights, hidden, kTokens, MlaForm::kAbsorbed), expanded), kExact);
  }
}

TEST(MlaOracle, LastTokensAreTheLastRowsOfTheWhole) {
  RandomLayer layer(TestShape(), 2);
  const Dense hidden = layer.Hidden(kTokens);
  const auto weights = ToDense(layer.weights);
  const Dense whole = Mla(layer.shape, weights, hidden, kTokens), tail = Mla(layer.shape, weights, hidden, 4);
  ASSERT_EQ(tail.rows, 4);
  for (int64_t t = 0; t < 4; ++t) {
    for (int64_t d = 0; d < tail.columns; ++d) EXPECT_EQ(tail(t, d), whole(kTokens - 4 + t, d));
  }
  EXPECT_EQ(Mla(layer.shape, weights, hidden, 0).rows, 0);
}

// The first token attends itself alone: its output is its own value through Wo, whatever the queries are.
TEST(MlaOracle, TheFirstTokenSeesItsOwnValue) {
  const MlaShape shape = TestShape();
  RandomLayer layer(shape, 3);
  const Dense hidden = layer.Hidden(1);
  const auto weights = ToDense(layer.weights);
  const Dense output = Mla(shape, weights, hidden, 1);
  const auto cache = reference::MlaCache(shape, weights, hidden, Positions(1));
  ASSERT_TRUE(cache.ok()) << cache.status();
  double mean = 0;  // of the normalised latent without gamma: 1
  for (int c = 0; c < shape.latent; ++c) mean += std::pow((*cache)(0, c) / weights.kv_norm(c, 0), 2) / shape.latent;
  EXPECT_NEAR(mean, 1.0, 1e-5);
  for (int d = 0; d < shape.hidden; ++d) {
    double expected = 0;
    for (int head = 0; head < shape.heads; ++head) {
      for (int v = 0; v < shape.value; ++v) {
        double value = 0;
        for (int c = 0; c < shape.latent; ++c) {
          value += (*cache)(0, c) * weights.kv_up(head * (shape.nope + shape.value) + shape.nope + v, c);
        }
        expected += value * weights.output(d, head * shape.value + v);
      }
    }
    EXPECT_NEAR(output(0, d), expected, 1e-12);
  }
}

// The oracle's rotation is written from the papers, the operators' from the same papers by another hand.
TEST(MlaOracle, RotatesAsTheOperatorsDo) {
  for (const MlaShape& shape : Shapes()) {
    RandomLayer layer(shape, 4);
    const Dense hidden = layer.Hidden(1);
    const auto weights = ToDense(layer.weights);
    const RopeTable table(shape.rope_options, shape.rope, 500);
    const auto unrotated = reference::MlaCache(shape, weights, hidden, Positions(1, 0));
    const double attention_factor = ComputeRopeFrequencies(shape.rope_options, shape.rope).attention_factor;
    for (const int64_t position : {0, 1, 17, 499}) {
      const auto cache = reference::MlaCache(shape, weights, hidden, Positions(1, position));
      ASSERT_TRUE(unrotated.ok() && cache.ok());
      std::vector<float> row(shape.rope);
      for (int r = 0; r < shape.rope; ++r) {
        row[r] = static_cast<float>((*unrotated)(0, shape.latent + r) / attention_factor);
      }
      table.Apply(row.data(), position);
      for (int r = 0; r < shape.rope; ++r) EXPECT_NEAR(row[r], (*cache)(0, shape.latent + r), 2e-6) << position;
    }
    // The scale shows in how the layer weighs tokens; the operators' is the paper's.
    const double plain = 1.0 / std::sqrt(shape.nope + shape.rope);
    const double m = shape.rope_options.yarn ? 0.1 * 0.7 * std::log(40.0) + 1.0 : 1.0;
    EXPECT_NEAR(shape.Scale(), plain * m * m, 1e-6);
  }
}

TEST(Tpla, OneGroupIsMla) {
  for (const MlaShape& shape : Shapes()) {
    RandomLayer layer(shape, 5);
    const Dense hidden = layer.Hidden(kTokens);
    const auto weights = ToDense(layer.weights);
    EXPECT_LE(RelativeError(Tpla(shape, weights, hidden, kTokens, Groups(1)), Mla(shape, weights, hidden, kTokens)),
              kExact);
    TplaOptions local = Groups(1);
    local.norm = reference::LatentNorm::kLocal;
    local.energy_share = {1.0};
    local.mu = {1.0};
    EXPECT_LE(RelativeError(Tpla(shape, weights, hidden, kTokens, local), Mla(shape, weights, hidden, kTokens)),
              kExact);
  }
}

TEST(Tpla, CutsApproximate) {
  RandomLayer layer(TestShape(), 6);
  const Dense hidden = layer.Hidden(kTokens);
  const auto weights = ToDense(layer.weights);
  const Dense exact = Mla(layer.shape, weights, hidden, kTokens);
  EXPECT_GT(RelativeError(Tpla(layer.shape, weights, hidden, kTokens, Groups(2)), exact), 0.01);
  TplaOptions scaled = Groups(2);
  scaled.mu = {1.5, 0.5};
  EXPECT_GT(RelativeError(Tpla(layer.shape, weights, hidden, kTokens, scaled),
                          Tpla(layer.shape, weights, hidden, kTokens, Groups(2))),
            0.001);
  TplaOptions half = Groups(2);
  half.out_scale = 0.5;
  Dense doubled = Tpla(layer.shape, weights, hidden, kTokens, half);
  for (double& value : doubled.values) value *= 2;
  EXPECT_LE(RelativeError(doubled, Tpla(layer.shape, weights, hidden, kTokens, Groups(2))), kExact);
}

// Grouped latent attention (GLA) has g latent heads of width C / g, each read by its own query heads. TPLA(g) is GLA
// whose query heads are the model's, once per group: an MLA of g h heads whose up-projections are zero elsewhere.
TEST(Tpla, EqualsGroupedLatentAttentionWithDuplicatedHeads) {
  for (const MlaShape& shape : Shapes()) {
    for (const int groups : {2, 4, 8}) {
      RandomLayer layer(shape, 7);
      const Dense hidden = layer.Hidden(kTokens);
      const auto weights = ToDense(layer.weights);
      MlaShape wide = shape;
      wide.heads = shape.heads * groups;
      reference::MlaWeights64 gla = weights;
      Dense& queries = shape.query_rank > 0 ? gla.query_up : gla.query;
      const Dense& one = shape.query_rank > 0 ? weights.query_up : weights.query;
      queries = Dense(groups * one.rows, one.columns);
      gla.kv_up = Dense(groups * weights.kv_up.rows, shape.latent);
      gla.output = Dense(shape.hidden, groups * weights.output.columns);
      for (int group = 0; group < groups; ++group) {
        for (int64_t row = 0; row < one.rows; ++row) {
          for (int64_t c = 0; c < one.columns; ++c) queries(group * one.rows + row, c) = one(row, c);
        }
        const int width = shape.latent / groups;
        for (int64_t row = 0; row < weights.kv_up.rows; ++row) {
          for (int c = group * width; c < (group + 1) * width; ++c) {
            gla.kv_up(group * weights.kv_up.rows + row, c) = weights.kv_up(row, c);
          }
        }
        for (int64_t d = 0; d < shape.hidden; ++d) {
          for (int64_t c = 0; c < weights.output.columns; ++c) {
            gla.output(d, group * weights.output.columns + c) = weights.output(d, c);
          }
        }
      }
      EXPECT_LE(RelativeError(Tpla(shape, weights, hidden, kTokens, Groups(groups)), Mla(wide, gla, hidden, kTokens)),
                kExact);
    }
  }
}

// Shard 1 then knows nothing and says nothing, and shard 0 knows every logit.
TEST(Tpla, IsExactWhenOneSliceIsZeroForAllTokens) {
  RandomLayer layer(TestShape(), 8);
  const Dense hidden = layer.Hidden(kTokens);
  auto weights = ToDense(layer.weights);
  for (int c = 4; c < 8; ++c) {
    for (int d = 0; d < layer.shape.hidden; ++d) weights.kv_down(c, d) = 0;
  }
  EXPECT_LE(
      RelativeError(Tpla(layer.shape, weights, hidden, kTokens, Groups(2)), Mla(layer.shape, weights, hidden, kTokens)),
      kExact);
}

TEST(Tpla, LatentLogitsOfTheShardsAndRopeOnceAreTheFullLogit) {
  for (const MlaShape& shape : Shapes()) {
    for (const int groups : {2, 8}) {
      RandomLayer layer(shape, 9);
      const Dense hidden = layer.Hidden(kTokens);
      const auto weights = ToDense(layer.weights);
      TplaOptions options = Groups(groups);
      options.share_logits = true;
      EXPECT_LE(RelativeError(Tpla(shape, weights, hidden, kTokens, options), Mla(shape, weights, hidden, kTokens)),
                kExact);
    }
  }
}

// With the share that a token really has, the local norm is the norm. (With 1 / share it would be off by far.)
TEST(Tpla, LocalNormIsExactAtTheTrueEnergyShare) {
  RandomLayer layer(TestShape(), 10);
  layer.shape.norm_epsilon = 0;
  const Dense hidden = layer.Hidden(1);
  const auto weights = ToDense(layer.weights);
  const auto latents = reference::MlaLatents(layer.shape, weights, hidden);
  ASSERT_TRUE(latents.ok()) << latents.status();
  TplaOptions local = Groups(2);
  local.norm = reference::LatentNorm::kLocal;
  local.energy_share = {0, 0};
  for (int c = 0; c < 8; ++c) local.energy_share[c / 4] += (*latents)(0, c) * (*latents)(0, c) / 8;
  EXPECT_NEAR(local.energy_share[0] + local.energy_share[1], 1.0, 1e-12);
  EXPECT_LE(
      RelativeError(Tpla(layer.shape, weights, hidden, 1, local), Tpla(layer.shape, weights, hidden, 1, Groups(2))),
      kExact);
}

TEST(Tpla, BadRequestsAreRefused) {
  RandomLayer layer(TestShape(), 11);
  const Dense hidden = layer.Hidden(3);
  const auto weights = ToDense(layer.weights);
  const auto message = [&](const TplaOptions& options, int64_t queries) {
    return std::string(
        reference::TplaLayer(layer.shape, weights, hidden, Positions(3), queries, options).status().message());
  };
  EXPECT_EQ(message(Groups(3), 3), "groups is 3; allowed: divisors of 8");
  TplaOptions few = Groups(2);
  few.mu = {1.0};
  EXPECT_EQ(message(few, 3), "mu and energy_share need 2 entries");
  EXPECT_EQ(message(Groups(2), 4), "query_tokens is 4; allowed: 0 to the 3 tokens");
  EXPECT_EQ(std::string(reference::MlaLayer(layer.shape, weights, layer.Hidden(2), Positions(3), 1, MlaForm::kExpanded)
                            .status()
                            .message()),
            "hidden is [2, 20]; needed: [3, 20]");
}

TEST(ChangeOfBasis, LeavesTheLayerAsItWas) {
  for (const MlaShape& shape : Shapes()) {
    for (uint64_t seed = 0; seed < 4; ++seed) {
      RandomLayer layer(shape, 12 + seed);
      const Dense hidden = layer.Hidden(kTokens);
      const auto changed = latent_test::Reparameterized(layer, RandomOrthogonal(shape.latent, seed));
      const Dense expected = Mla(shape, ToDense(layer.weights), hidden, kTokens);
      EXPECT_LE(RelativeError(Mla(shape, changed, hidden, kTokens), expected), 1e-12);
      EXPECT_LE(RelativeError(Mla(shape, changed, hidden, kTokens, MlaForm::kAbsorbed), expected), 1e-12);
    }
  }
}

TEST(ChangeOfBasis, DecidesWhatACutKeeps) {
  RandomLayer layer(TestShape(), 20);
  const Dense hidden = layer.Hidden(200);
  LatentMoment moment(layer.shape.latent);
  const auto latents = reference::MlaLatents(layer.shape, ToDense(layer.weights), hidden);
  ASSERT_TRUE(latents.ok()) << latents.status();
  moment.Add(std::vector<float>(latents->values.begin(), latents->values.end()));
  const auto pca = PcaBasis(moment);
  ASSERT_TRUE(pca.ok()) << pca.status();
  // Seen from the new basis, the cache's columns carry the energy that the shares promise.
  const auto changed = reference::MlaLatents(layer.shape, latent_test::Reparameterized(layer, *pca), hidden);
  ASSERT_TRUE(changed.ok()) << changed.status();
  double first = 0, all = 0;
  for (int64_t t = 0; t < hidden.rows; ++t) {
    for (int c = 0; c < 8; ++c) {
      (c < 4 ? first : all) += (*changed)(t, c) * (*changed)(t, c);
    }
  }
  const std::vector<double> shares = EnergyShares(moment, *pca, 2);
  EXPECT_NEAR(shares[0], first / (first + all), 1e-6);
  EXPECT_GT(shares[0], EnergyShares(moment, IdentityBasis(8), 2)[0]);
}

}  // namespace
}  // namespace tessera
