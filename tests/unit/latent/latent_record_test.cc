#include "runtime/latent/latent_record.h"

#include <gmock/gmock.h>

namespace tessera {
namespace {

using ::testing::HasSubstr;

LatentRecord Record() {
  LatentRecord record;
  record.transform = LatentTransform::kPca;
  record.seed = ~uint64_t{0};
  record.version = "1.2 (abc)";
  record.tokens = 1000;
  record.layers = {{{0.5, 0.25, 0.125, 0.125}, {{1, {1.0}}, {2, {1.1, 0.3}}}}, {}};
  return record;
}

SafetensorsMetadata Metadata(const LatentRecord& record) {
  SafetensorsMetadata metadata = RecordMetadata(record);
  for (int layer = 0; layer < std::ssize(record.layers); ++layer) metadata.insert(LayerMetadata(record, layer));
  metadata["format"] = "pt";
  return metadata;
}

TEST(LatentRecord, ComesBackFromMetadata) {
  const LatentRecord record = Record();
  const auto read = ReadLatentRecord(Metadata(record), 2, 4);
  ASSERT_TRUE(read.ok()) << read.status();
  ASSERT_TRUE(read->has_value());
  const LatentRecord& again = **read;
  EXPECT_EQ(again.transform, record.transform);
  EXPECT_EQ(again.seed, record.seed);
  EXPECT_EQ(again.version, record.version);
  EXPECT_EQ(again.tokens, record.tokens);
  ASSERT_EQ(again.layers.size(), 2u);
  EXPECT_EQ(again.layers[0].column_energy, record.layers[0].column_energy);
  EXPECT_EQ(again.layers[0].mu, record.layers[0].mu);
  EXPECT_TRUE(again.layers[1].column_energy.empty());
  EXPECT_EQ(EnergyShares(again.layers[0], 2), (std::vector<double>{0.75, 0.25}));
  EXPECT_EQ(EnergyShares(again.layers[0], 1), std::vector<double>{1.0});
  EXPECT_TRUE(EnergyShares(again.layers[1], 2).empty());
}

TEST(LatentRecord, IsAbsentFromOtherCheckpoints) {
  const auto read = ReadLatentRecord({{"format", "pt"}}, 2, 4);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_FALSE(read->has_value());
}

TEST(LatentRecord, BrokenEntriesAreRefused) {
  const auto message = [](const std::string& key, const std::string& text, int layers = 2) {
    SafetensorsMetadata metadata = Metadata(Record());
    metadata[key] = text;
    const auto read = ReadLatentRecord(metadata, layers, 4);
    EXPECT_FALSE(read.ok()) << key << " " << text;
    return std::string(read.status().message());
  };
  const std::string layer = "tessera.latent.layer.0";
  EXPECT_THAT(message("tessera.latent.transform", "magic"), HasSubstr("\"magic\" is unknown"));
  EXPECT_THAT(message("tessera.latent.seed", "-1"), HasSubstr("\"tessera.latent.seed\" is \"-1\"; allowed: a count"));
  EXPECT_THAT(message("tessera.latent.tokens", "12 apples"), HasSubstr("allowed: a count"));
  EXPECT_THAT(message(layer, "{"), HasSubstr("a JSON object"));
  EXPECT_THAT(message(layer, R"({"energy": [1, 2, 3]})"), HasSubstr("an energy of 4 numbers"));
  EXPECT_THAT(message(layer, R"({"energy": [1, 2, 3, -1]})"), HasSubstr("an energy of 4 numbers"));
  EXPECT_THAT(message(layer, R"({"energy": [1, 2, 3, "4"]})"), HasSubstr("an energy of 4 numbers"));
  EXPECT_THAT(message(layer, R"({"mu": 3})"), HasSubstr("an object mu"));
  for (const char* mu :
       {R"({"2": [1]})", R"({"3": [1, 1, 1]})", R"({"x": [1]})", R"({"0": []})", R"({"2": [1, null]})"}) {
    EXPECT_THAT(message(layer, absl::StrCat(R"({"mu": )", mu, "}")), HasSubstr("as many mu as there are groups"));
  }
  EXPECT_THAT(message("other", "", 3), HasSubstr("\"tessera.latent.layer.2\" is \"\""));
}

}  // namespace
}  // namespace tessera
