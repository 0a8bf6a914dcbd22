#include "runtime/latent/config.h"

#include <gmock/gmock.h>

#include <nlohmann/json.hpp>

#include "tests/unit/latent/folder.h"

namespace tessera {
namespace {

using ::testing::HasSubstr;
using Json = nlohmann::json;

// DeepSeek-V3's published fields, as far as they are read.
Json DeepSeekV3() {
  return Json::parse(
      R"({"model_type": "deepseek_v3", "hidden_size": 7168, "num_hidden_layers": 61, "vocab_size": 129280,
    "num_attention_heads": 128, "num_key_value_heads": 128, "q_lora_rank": 1536, "kv_lora_rank": 512,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "intermediate_size": 18432,
    "first_k_dense_replace": 3, "n_routed_experts": 256, "rms_norm_eps": 1e-06, "rope_theta": 10000,
    "max_position_embeddings": 163840, "tie_word_embeddings": false, "hidden_act": "silu",
    "rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32,
                     "beta_slow": 1, "mscale": 0.707, "mscale_all_dim": 0.5}})");
}

class ConfigTest : public latent_test::FolderTest {
 protected:
  StatusOr<ModelConfig> Read(const Json& json) {
    Write("config.json", json.dump());
    return ReadModelConfig(folder_.string());
  }
  void ExpectRefused(const char* field, const Json& value, const std::string& message) {
    Json json = DeepSeekV3();
    json[field] = value;
    const auto config = Read(json);
    ASSERT_FALSE(config.ok()) << field << " " << value;
    EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(config.status().message()), HasSubstr(message));
    EXPECT_THAT(std::string(config.status().message()), HasSubstr(Path("config.json")));
  }
};

TEST_F(ConfigTest, ReadsDeepSeekV3) {
  const auto config = Read(DeepSeekV3());
  ASSERT_TRUE(config.ok()) << config.status();
  MlaShape shape;
  shape.hidden = 7168;
  shape.heads = 128;
  shape.query_rank = 1536;
  shape.latent = 512;
  shape.nope = 128;
  shape.rope = 64;
  shape.value = 128;
  shape.rope_options.layout = RopeLayout::kInterleaved;  // what DeepSeek's checkpoints have
  shape.rope_options.yarn = YarnScaling{40, 4096, 32, 1, 0.707, 0.5};
  EXPECT_TRUE(config->attention == shape);
  EXPECT_EQ(config->layers, 61);
  EXPECT_EQ(config->vocabulary, 129280);
  EXPECT_EQ(config->intermediate, 18432);
  EXPECT_EQ(config->routed_experts, 256);
  EXPECT_EQ(config->first_dense_layers, 3);
  EXPECT_EQ(config->max_positions, 163840);
  EXPECT_FALSE(config->tied_embeddings);
  EXPECT_EQ(config->activation, "silu");
  EXPECT_EQ(config->tokenizer, "");
}

TEST_F(ConfigTest, ReadsTheBundledModel) {
  const auto config = ReadModelConfig(TESSERA_TEST_MODEL);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->attention.query_rank, 0);
  EXPECT_EQ(config->attention.latent, 128);
  EXPECT_EQ(config->attention.rope_options.layout, RopeLayout::kHalfSplit);
  EXPECT_FALSE(config->attention.rope_options.yarn.has_value());
  EXPECT_EQ(config->routed_experts, 0);
  EXPECT_EQ(config->max_positions, 512);
  EXPECT_EQ(config->tokenizer, "bytes");
}

TEST_F(ConfigTest, NullMeansAbsent) {
  Json json = DeepSeekV3();
  for (const char* field : {"q_lora_rank", "n_routed_experts", "rope_scaling", "hidden_act", "rms_norm_eps"}) {
    json[field] = nullptr;
  }
  const auto config = Read(json);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->attention.query_rank, 0);
  EXPECT_EQ(config->routed_experts, 0);
  EXPECT_FALSE(config->attention.rope_options.yarn.has_value());
  EXPECT_EQ(config->attention.norm_epsilon, 1e-6f);
}

TEST_F(ConfigTest, ScalingTypeMayBeCalledRopeType) {
  Json json = DeepSeekV3();
  json["rope_scaling"] = {{"rope_type", "yarn"}, {"factor", 8}};
  auto config = Read(json);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_TRUE(config->attention.rope_options.yarn == (YarnScaling{8, 4096, 32, 1, 1, 0}));
  json["rope_scaling"] = {{"rope_type", "default"}};
  config = Read(json);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_FALSE(config->attention.rope_options.yarn.has_value());
}

TEST_F(ConfigTest, MissingFieldsAreNamed) {
  for (const char* field :
       {"hidden_size", "num_attention_heads", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim",
        "num_hidden_layers", "vocab_size", "intermediate_size", "max_position_embeddings"}) {
    Json json = DeepSeekV3();
    json.erase(field);
    EXPECT_THAT(std::string(Read(json).status().message()), HasSubstr(std::string(field) + " is missing"));
  }
  // A model of another family is told apart by its own name.
  EXPECT_THAT(
      std::string(Read({{"model_type", "llama"}, {"hidden_size", 8}, {"num_attention_heads", 1}}).status().message()),
      HasSubstr("kv_lora_rank is missing; needed: the fields of a DeepSeek-V2 or V3 model (model_type is "
                "\"llama\")"));
}

TEST_F(ConfigTest, BadValuesAreRefused) {
  for (const Json& value : {Json(0), Json(-4), Json(4.0), Json("4"), Json(1ull << 40), Json::array(), Json(true)}) {
    ExpectRefused("kv_lora_rank", value, "kv_lora_rank is " + value.dump() + "; allowed: integers from 1 to 1048576");
  }
  ExpectRefused("qk_rope_head_dim", 63, "qk_rope_head_dim is 63; allowed: even");
  ExpectRefused("rope_theta", -1, "rope_theta is -1; allowed: finite numbers above 0");
  ExpectRefused("rms_norm_eps", 0, "rms_norm_eps is 0");
  ExpectRefused("tie_word_embeddings", "no", "allowed: true, false");
  ExpectRefused("rope_layout", "spiral", "rope_layout is \"spiral\"; allowed: interleaved (the default), half_split");
  ExpectRefused("attention_bias", true, "no bias");
  ExpectRefused("rope_scaling", 4, "rope_scaling is 4; allowed: null or an object");
  ExpectRefused("rope_scaling", {{"type", "linear"}, {"factor", 2}},
                "rope_scaling: type is \"linear\"; allowed: yarn, default, or null");
  ExpectRefused("rope_scaling", {{"type", "yarn"}}, "rope_scaling: factor is missing");
  ExpectRefused("rope_scaling", {{"type", "yarn"}, {"factor", 0.5}}, "rope_scaling: factor is 0.5; allowed: 1 or more");
  Json wide = DeepSeekV3();
  wide["num_attention_heads"] = wide["v_head_dim"] = 1 << 20;
  EXPECT_THAT(std::string(Read(wide).status().message()), HasSubstr("num_attention_heads is 1048576; allowed: heads"));
}

TEST_F(ConfigTest, FilesThatAreNoConfigAreRefused) {
  EXPECT_EQ(ReadModelConfig(folder_.string()).status().code(), absl::StatusCode::kNotFound);
  for (const char* text : {"", "{", "[]", "\xff\xfe"}) {
    Write("config.json", text);
    EXPECT_THAT(std::string(ReadModelConfig(folder_.string()).status().message()), HasSubstr("not a JSON object"));
  }
  Write("config.json", std::string((1 << 24) + 1, ' '));
  EXPECT_THAT(std::string(ReadModelConfig(folder_.string()).status().message()), HasSubstr("longer than"));
}

}  // namespace
}  // namespace tessera
