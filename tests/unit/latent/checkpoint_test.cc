#include "runtime/latent/checkpoint.h"

#include <gmock/gmock.h>

#include <cmath>
#include <limits>

#include "tests/unit/latent/folder.h"

namespace tessera {
namespace {

using ::testing::HasSubstr;

MlaShape SmallShape(int query_rank) {
  MlaShape shape;
  shape.hidden = 6;
  shape.heads = 2;
  shape.query_rank = query_rank;
  shape.latent = 4;
  shape.nope = 3;
  shape.rope = 2;
  shape.value = 5;
  return shape;
}

std::vector<SafetensorsEntry> LayerEntries(const MlaShape& shape, int layer) {
  const std::string prefix = AttentionPrefix(layer);
  const int64_t queries = shape.heads * shape.qk_width();
  std::vector<SafetensorsEntry> entries;
  if (shape.query_rank > 0) {
    entries = {{prefix + "q_a_proj.weight", DType::kFloat32, {shape.query_rank, shape.hidden}},
               {prefix + "q_a_layernorm.weight", DType::kFloat32, {shape.query_rank}},
               {prefix + "q_b_proj.weight", DType::kFloat32, {queries, shape.query_rank}}};
  } else {
    entries = {{prefix + "q_proj.weight", DType::kFloat32, {queries, shape.hidden}}};
  }
  entries.push_back({prefix + "kv_a_proj_with_mqa.weight", DType::kFloat32, {shape.cache_width(), shape.hidden}});
  entries.push_back({prefix + "kv_a_layernorm.weight", DType::kBFloat16, {shape.latent}});
  entries.push_back(
      {prefix + "kv_b_proj.weight", DType::kFloat16, {shape.heads * (shape.nope + shape.value), shape.latent}});
  entries.push_back({prefix + "o_proj.weight", DType::kFloat32, {shape.hidden, shape.heads * shape.value}});
  return entries;
}

class CheckpointTest : public latent_test::FolderTest {
 protected:
  std::string OpenError() const { return std::string(Checkpoint::Open(folder_.string()).status().message()); }
};

TEST_F(CheckpointTest, ReadsTheLayersOfASingleFile) {
  for (const int query_rank : {0, 7}) {
    const MlaShape shape = SmallShape(query_rank);
    std::vector<SafetensorsEntry> entries = LayerEntries(shape, 0), second = LayerEntries(shape, 1);
    entries.insert(entries.end(), second.begin(), second.end());
    WriteTensors("model.safetensors", entries, {{"format", "pt"}});
    const auto checkpoint = Checkpoint::Open(folder_.string());
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    EXPECT_EQ(checkpoint->metadata().at("format"), "pt");
    EXPECT_TRUE(checkpoint->Has("model.layers.1.self_attn.o_proj.weight"));
    EXPECT_FALSE(checkpoint->Has("model.layers.2.self_attn.o_proj.weight"));
    const auto weights = ReadMlaWeights(*checkpoint, shape, 0);
    ASSERT_TRUE(weights.ok()) << weights.status();
    EXPECT_EQ(weights->query.empty(), query_rank > 0);
    EXPECT_EQ(weights->query_up.empty(), query_rank == 0);
    EXPECT_EQ(weights->kv_down.rows, 6);
    const float first = weights->kv_down.At(0, 0);  // the elements count through the file
    EXPECT_EQ(weights->kv_down.At(5, 5), first + 35);
    EXPECT_EQ(weights->kv_norm.At(3, 0), first + 36 + 3);
    EXPECT_EQ(weights->kv_up.At(15, 3), first + 36 + 4 + 63);
    EXPECT_TRUE(ReadMlaWeights(*checkpoint, shape, 1).ok());
  }
}

TEST_F(CheckpointTest, ReadsShards) {
  const MlaShape shape = SmallShape(0);
  const std::vector<SafetensorsEntry> entries = LayerEntries(shape, 0);
  WriteTensors("a.safetensors", std::span(entries).first(2), {{"who", "a"}, {"only", "a"}});
  WriteTensors("b.safetensors", std::span(entries).subspan(2), {{"who", "b"}});
  std::string map;
  for (size_t i = 0; i < entries.size(); ++i) {
    map += (i ? ", \"" : "\"") + entries[i].name + "\": \"" + (i < 2 ? "a" : "b") + ".safetensors\"";
  }
  Write("model.safetensors.index.json", R"({"metadata": {"total_size": 1}, "weight_map": {)" + map + "}}");
  const auto checkpoint = Checkpoint::Open(folder_.string());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ(checkpoint->files().size(), 2u);
  EXPECT_EQ(checkpoint->metadata().at("only"), "a");
  const auto weights = ReadMlaWeights(*checkpoint, shape, 0);
  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_EQ(weights->kv_norm.At(2, 0), 2);  // first of its shard
}

TEST_F(CheckpointTest, BrokenIndexesAreRefused) {
  EXPECT_THAT(OpenError(), HasSubstr("holds neither model.safetensors nor model.safetensors.index.json"));
  EXPECT_EQ(Checkpoint::Open(folder_.string()).status().code(), absl::StatusCode::kNotFound);
  const auto index = [&](const std::string& text) {
    Write("model.safetensors.index.json", text);
    return OpenError();
  };
  EXPECT_THAT(index("{"), HasSubstr("not a JSON object with a weight_map object"));
  EXPECT_THAT(index(R"({"weight_map": []})"), HasSubstr("not a JSON object with a weight_map object"));
  for (const char* name : {R"("../a.safetensors")", R"("/etc/passwd")", R"("..")", R"("")", "7"}) {
    EXPECT_THAT(index(std::string(R"({"weight_map": {"w": )") + name + "}}"),
                HasSubstr(std::string("tensor \"w\" is in file ") + name + "; allowed: names of files"));
  }
  EXPECT_THAT(index(R"({"weight_map": {"w": "a.safetensors"}})"), HasSubstr("a file that does not exist"));
  WriteTensors("a.safetensors", std::vector<SafetensorsEntry>{{"v", DType::kFloat32, {2}}});
  EXPECT_THAT(index(R"({"weight_map": {"w": "a.safetensors"}})"), HasSubstr("tensor \"w\" is not in"));
}

TEST_F(CheckpointTest, MissingAndMisshapenTensorsAreNamed) {
  const MlaShape shape = SmallShape(0);
  std::vector<SafetensorsEntry> entries = LayerEntries(shape, 0);
  entries[2].name = "model.layers.0.self_attn.kv_a_norm.weight";
  entries[3].shape = {16, 5};
  WriteTensors("model.safetensors", entries);
  const auto checkpoint = Checkpoint::Open(folder_.string());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const Status status = ReadMlaWeights(*checkpoint, shape, 0).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("no tensor \"model.layers.0.self_attn.kv_a_layernorm.weight\"; nearest names: "
                        "\"model.layers.0.self_attn.kv_a_norm.weight\""));
  const Status misshapen = checkpoint->Matrix("model.layers.0.self_attn.kv_b_proj.weight", 16, 4).status();
  EXPECT_EQ(misshapen.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(misshapen.message()), HasSubstr("is F16 [16, 5]; needed: [16, 4]"));
  EXPECT_FALSE(checkpoint->Matrix("model.layers.0.self_attn.kv_b_proj.weight", 80, 1).ok());
}

TEST_F(CheckpointTest, TypesThatAreNotComputedOnAreRefused) {
  const std::vector<SafetensorsTensor> tensors = {{"w", "F8_E4M3", std::nullopt, {2, 2}, 0, 4}};
  auto writer = SafetensorsWriter::CreateLike(Path("model.safetensors"), tensors, 1);
  ASSERT_TRUE(writer.ok()) << writer.status();
  ASSERT_TRUE(writer->Commit().ok());
  const auto checkpoint = Checkpoint::Open(folder_.string());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_THAT(std::string(checkpoint->Matrix("w", 2, 2).status().message()),
              HasSubstr("is F8_E4M3 [2, 2]; needed: types F32, BF16 or F16"));
}

TEST_F(CheckpointTest, NonFiniteWeightsAreFound) {
  std::vector<float> values(6, 1.0f);
  const MatrixView view{values.data(), DType::kFloat32, 2, 3};
  EXPECT_TRUE(CheckFinite(view, "w").ok());
  values[5] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THAT(std::string(CheckFinite(view, "w").message()), HasSubstr("tensor \"w\" holds nan at [1, 2]"));
  values[1] = -std::numeric_limits<float>::infinity();
  EXPECT_THAT(std::string(CheckFinite(view, "w").message()), HasSubstr("holds -inf at [0, 1]"));
}

TEST(BundledModel, HasAllItsLayers) {
  const auto config = ReadModelConfig(TESSERA_TEST_MODEL);
  ASSERT_TRUE(config.ok()) << config.status();
  const auto checkpoint = Checkpoint::Open(TESSERA_TEST_MODEL);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  for (int layer = 0; layer < config->layers; ++layer) {
    const auto weights = ReadMlaWeights(*checkpoint, config->attention, layer);
    ASSERT_TRUE(weights.ok()) << weights.status();
    EXPECT_EQ(weights->kv_up.dtype, DType::kBFloat16);
    EXPECT_TRUE(CheckFinite(weights->kv_up, "kv_up").ok());
  }
}

}  // namespace
}  // namespace tessera
