// Shapes, RoPE with YaRN and row normalisation of latent attention against closed forms.
#include "kernels/mla.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <numbers>

#include "tests/unit/kernels/problem.h"

namespace tessera::testing {
namespace {

// DeepSeek-V2-Lite with its YaRN settings.
MlaShape Lite() {
  MlaShape shape;
  shape.hidden = 2048;
  shape.heads = 16;
  shape.latent = 512;
  shape.nope = 128;
  shape.rope = 64;
  shape.value = 128;
  shape.rope_options.yarn = YarnScaling{40.0, 4096, 32.0, 1.0, 0.707, 0.707};
  return shape;
}

TEST(MlaShape, ScaleIsThatOfTheExpandedWidthTimesYarnsTemperatureSquared) {
  MlaShape shape = Lite();
  EXPECT_NEAR(shape.Scale(), 0.114721, 1e-6);
  shape.rope_options.yarn->mscale_all_dim = 0.0;
  EXPECT_NEAR(shape.Scale(), 1.0 / std::sqrt(192.0), 1e-8);
  shape.rope_options.yarn = YarnScaling{.factor = 1.0, .mscale_all_dim = 3.0};
  EXPECT_NEAR(shape.Scale(), 1.0 / std::sqrt(192.0), 1e-8);
  shape.rope_options.yarn.reset();
  EXPECT_NEAR(shape.Scale(), 1.0 / std::sqrt(192.0), 1e-8);
}

TEST(MlaShape, RefusalsNameFieldAndValue) {
  const std::pair<const char*, std::function<void(MlaShape&)>> cases[] = {
      {"hidden is 0", [](MlaShape& s) { s.hidden = 0; }},
      {"heads is -1", [](MlaShape& s) { s.heads = -1; }},
      {"latent is 0", [](MlaShape& s) { s.latent = 0; }},
      {"nope is 0", [](MlaShape& s) { s.nope = 0; }},
      {"value is 0", [](MlaShape& s) { s.value = 0; }},
      {"query_rank is -2", [](MlaShape& s) { s.query_rank = -2; }},
      {"rope is 63, but must be even", [](MlaShape& s) { s.rope = 63; }},
      {"norm_epsilon is nan", [](MlaShape& s) { s.norm_epsilon = NAN; }},
      {"rope theta is 1", [](MlaShape& s) { s.rope_options.theta = 1.0; }},
      {"yarn factor is 0.5", [](MlaShape& s) { s.rope_options.yarn->factor = 0.5; }},
      {"yarn original_positions is 0", [](MlaShape& s) { s.rope_options.yarn->original_positions = 0; }},
      {"yarn beta_slow is 0", [](MlaShape& s) { s.rope_options.yarn->beta_slow = 0; }},
      {"yarn beta_fast is 0.5", [](MlaShape& s) { s.rope_options.yarn->beta_fast = 0.5; }},
      {"yarn mscale is -1", [](MlaShape& s) { s.rope_options.yarn->mscale = -1; }},
      {"yarn mscale_all_dim is inf", [](MlaShape& s) { s.rope_options.yarn->mscale_all_dim = INFINITY; }},
  };
  EXPECT_TRUE(Validate(Lite()).ok());
  for (const auto& [text, damage] : cases) {
    MlaShape shape = Lite();
    damage(shape);
    const Status status = Validate(shape);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_NE(status.message().find(text), std::string_view::npos) << status.message();
  }
}

TEST(MlaWeights, RefusalsNameTheMatrixAndTheShapeItNeeds) {
  const float one = 1.0f;
  const auto matrix = [&](int64_t rows, int64_t columns) { return MatrixView{&one, DType::kFloat32, rows, columns}; };
  MlaShape shape = Lite();
  MlaWeights weights;
  weights.query = matrix(16 * 192, 2048);
  weights.kv_down = matrix(576, 2048);
  weights.kv_norm = matrix(512, 1);
  weights.kv_up = matrix(16 * 256, 512);
  weights.output = matrix(2048, 16 * 128);
  EXPECT_TRUE(Validate(shape, weights).ok()) << Validate(shape, weights);
  weights.kv_up.columns = 576;
  EXPECT_NE(Validate(shape, weights).message().find("kv_up is [4096, 576], but the layer needs [4096, 512]"),
            std::string_view::npos);
  weights.kv_up.columns = 512;
  weights.kv_norm = {};
  EXPECT_NE(Validate(shape, weights).message().find("kv_norm is missing"), std::string_view::npos);
  weights.kv_norm = matrix(512, 1);
  shape.query_rank = 64;
  EXPECT_NE(Validate(shape, weights).message().find("query is given, but query_rank is set"), std::string_view::npos);
  weights.query = {};
  weights.query_down = matrix(64, 2048);
  weights.query_norm = matrix(64, 1);
  weights.query_up = matrix(16 * 192, 64);
  EXPECT_TRUE(Validate(shape, weights).ok());
  shape.query_rank = 0;
  EXPECT_NE(Validate(shape, weights).message().find("query is missing"), std::string_view::npos);
}

// The correction range of these settings is pairs 10 to 23 (DeepSeek's yarn_find_correction_range, by hand:
// 64 ln(4096 / 64 pi) / 2 ln 10000 = 10.47, 64 ln(4096 / 2 pi) / 2 ln 10000 = 22.51).
TEST(Rope, YarnKeepsFastWavesStretchesSlowOnesAndBlendsBetween) {
  const RopeFrequencies plain = ComputeRopeFrequencies({}, 64);
  ASSERT_EQ(plain.frequency.size(), 32u);
  EXPECT_EQ(plain.attention_factor, 1.0);
  RopeOptions options = Lite().rope_options;
  const RopeFrequencies yarn = ComputeRopeFrequencies(options, 64);
  EXPECT_EQ(yarn.attention_factor, 1.0);
  for (int i = 0; i < 32; ++i) {
    EXPECT_NEAR(plain.frequency[i], std::pow(10000.0, -i / 32.0), 1e-15);
    const double stretched = i <= 10 ? 0.0 : i >= 23 ? 1.0 : (i - 10) / 13.0;
    EXPECT_NEAR(yarn.frequency[i], plain.frequency[i] * (stretched / 40.0 + 1.0 - stretched), 1e-15) << i;
  }
  options.yarn->mscale_all_dim = 0.0;
  EXPECT_NEAR(ComputeRopeFrequencies(options, 64).attention_factor, 0.1 * 0.707 * std::log(40.0) + 1.0, 1e-12);
}

TEST(Rope, ScoresDependOnDistanceOnlyInBothLayouts) {
  Random random("rope");
  for (RopeLayout layout : {RopeLayout::kHalfSplit, RopeLayout::kInterleaved}) {
    RopeOptions options;
    options.layout = layout;
    const RopeTable table(options, 10, 3000);
    float query[10], key[10];
    for (float& x : query) x = random.Normal();
    for (float& x : key) x = random.Normal();
    const auto score = [&](int64_t query_position, int64_t key_position) {
      float q[10], k[10];
      std::copy_n(query, 10, q);
      std::copy_n(key, 10, k);
      table.Apply(q, query_position);
      table.Apply(k, key_position);
      double sum = 0;
      for (int i = 0; i < 10; ++i) sum += double{q[i]} * k[i];
      return sum;
    };
    EXPECT_NEAR(score(7, 3), score(2904, 2900), 1e-5);
    EXPECT_GT(std::abs(score(7, 3) - score(7, 4)), 1e-3);
  }
}

TEST(Rope, LayoutsAreEachOthersPermutation) {
  RopeOptions options = Lite().rope_options;
  options.yarn->mscale_all_dim = 0.0;  // an attention factor other than 1
  float split[8] = {1, 2, 3, 4, 5, 6, 7, 8};
  float interleaved[8] = {1, 5, 2, 6, 3, 7, 4, 8};
  RopeTable(options, 8, 50).Apply(split, 49);
  options.layout = RopeLayout::kInterleaved;
  RopeTable(options, 8, 50).Apply(interleaved, 49);
  const RopeFrequencies frequencies = ComputeRopeFrequencies(options, 8);
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(split[i], interleaved[2 * i]);
    EXPECT_EQ(split[i + 4], interleaved[2 * i + 1]);
    const double angle = 49 * frequencies.frequency[i];
    EXPECT_NEAR(split[i], frequencies.attention_factor * ((i + 1) * std::cos(angle) - (i + 5) * std::sin(angle)), 1e-5);
    EXPECT_NEAR(split[i + 4], frequencies.attention_factor * ((i + 5) * std::cos(angle) + (i + 1) * std::sin(angle)),
                1e-5);
  }
}

TEST(RmsNorm, DividesByTheRootMeanSquare) {
  Random random("norm");
  for (size_t width : {1u, 7u, 512u}) {
    std::vector<float> row(width), gamma(width);
    double sum = 0;
    for (float& x : row) {
      x = 3.0f * random.Normal();
      sum += double{x} * x;
    }
    for (float& x : gamma) x = random.Uniform(0.5f, 2.0f);
    const double factor = 1.0 / std::sqrt(sum / width + 1e-3);
    std::vector<float> normed = row, scaled = row;
    EXPECT_NEAR(RmsNormRow(normed, {}, 1e-3f), factor, 1e-6 * factor);
    RmsNormRow(scaled, gamma, 1e-3f);
    for (size_t i = 0; i < width; ++i) {
      EXPECT_NEAR(normed[i], row[i] * factor, 1e-6 * std::abs(row[i]));
      EXPECT_NEAR(scaled[i], row[i] * factor * gamma[i], 2e-6 * std::abs(row[i]));
    }
  }
}

}  // namespace
}  // namespace tessera::testing
