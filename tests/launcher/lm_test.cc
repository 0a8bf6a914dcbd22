// tessera score, generate and bench decode: the same answers on any number of ranks, and every way to ask wrongly.
#include <gmock/gmock.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "launcher/lm/dense_model.h"
#include "launcher/lm/text.h"
#include "tests/launcher/bundled_model.h"

namespace tessera::launcher_test {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;
namespace fs = std::filesystem;

const std::string kScore = "score --model " + kModel + " --text " + kText + " ";

// Bits that these logits spend on the byte after each token of `text` from `first` on; one byte more than rows.
double BitsOf(const std::vector<float>& logits, const std::string& text) {
  double bits = 0;
  for (size_t row = 0; row + 1 < text.size(); ++row) {
    const float* const at = logits.data() + row * 256;
    double sum = 0;
    for (int i = 0; i < 256; ++i) sum += std::exp(static_cast<double>(at[i]));
    bits += std::log2(sum) - at[static_cast<unsigned char>(text[row + 1])] / std::log(2.0);
  }
  return bits;
}

class LmTest : public BundledModelTest {
 protected:
  // The records a run wrote.
  std::vector<nlohmann::json> Records(int ranks, const std::string& arguments) const {
    const std::string json = Path("records.jsonl"), command = arguments + " --json " + json;
    fs::remove(json);
    const Outcome outcome = ranks == 1 ? RunAlone(command) : RunRanks(ranks, command);
    EXPECT_EQ(outcome.exit_code, 0) << outcome.out << outcome.err;
    std::vector<nlohmann::json> records;
    std::ifstream file(json);
    for (std::string line; std::getline(file, line);) records.push_back(nlohmann::json::parse(line));
    return records;
  }
  std::string Generated(int ranks, const std::string& flags) const {
    const std::string command = "generate --model " + kModel + " " + flags;
    const Outcome outcome = ranks == 1 ? RunAlone(command) : RunRanks(ranks, command);
    EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
    return outcome.out;
  }
  void ExpectRefused(const Outcome& outcome, int code, const std::string& message) const {
    EXPECT_EQ(outcome.exit_code, code) << outcome.err;
    EXPECT_THAT(outcome.err, HasSubstr(message));
  }
};

TEST_F(LmTest, ScoresAgreeOverRanksMethodsAndWaysToStep) {
  std::map<int64_t, double> exact;  // by prefix, on one rank
  for (const int ranks : {1, 2, 4}) {
    const auto records = Records(ranks, kScore + "--windows 3 --context 96 --method all --groups 1 --prefix 0,0.9");
    ASSERT_EQ(records.size(), 12u);
    for (const auto& record : records) {
      const int64_t prefix = record["prefix_tokens"];
      const double bits = record["bits_per_byte"];
      if (ranks == 1 && record["method"] == "exact") exact[prefix] = bits;
      ASSERT_TRUE(exact.contains(prefix)) << record;
      EXPECT_NEAR(bits, exact[prefix], 1e-4) << record;
      EXPECT_EQ(record["bytes_scored"], 3 * (96 - prefix));
      EXPECT_EQ(record["cache_bytes_per_token_layer"],
                std::vector<int64_t>(ranks, record["method"] == "exact" ? 0 : (128 + 32) * 4));
    }
  }
  ASSERT_EQ(exact.size(), 2u);
  EXPECT_TRUE(exact.contains(0) && exact.contains(86));
  // One token per step, and seven.
  const std::string few = kScore + "--windows 2 --context 40 --prefix 0.5 --method ";
  const double whole = Records(1, few + "exact")[0]["bits_per_byte"];
  for (const char* flags : {"tree,head --query-tokens 1", "gather-query,replicated-query --query-tokens 7"}) {
    for (const auto& record : Records(2, few + flags)) EXPECT_NEAR(record["bits_per_byte"], whole, 1e-4) << record;
  }
  // What rounds or approximates gives another score, but not a very different one.
  const auto rounded = Records(2, few + "head,tpla --dtype bf16");
  ASSERT_EQ(rounded.size(), 2u);
  EXPECT_EQ(rounded[0]["cache_bytes_per_token_layer"], std::vector<int64_t>(2, (128 + 32) * 2));
  EXPECT_EQ(rounded[1]["cache_bytes_per_token_layer"], std::vector<int64_t>(2, (64 + 32) * 2));
  EXPECT_NE(rounded[0]["bits_per_byte"], whole);
  EXPECT_NEAR(rounded[0]["bits_per_byte"], whole, 0.02 * whole);
  EXPECT_GT(std::abs(rounded[1]["bits_per_byte"].get<double>() - whole), 0.02 * whole);
}

TEST_F(LmTest, ScoresAreThoseOfTheReferenceLogits) {
  const auto reference = SafetensorsFile::Open(kModel + "/reference_logits.safetensors");
  ASSERT_TRUE(reference.ok()) << reference.status();
  const auto tensor = reference->Find("logits");
  ASSERT_TRUE(tensor.ok()) << tensor.status();
  const auto bytes = reference->Bytes(**tensor);
  std::vector<float> logits(bytes.size() / sizeof(float));
  std::memcpy(logits.data(), bytes.data(), bytes.size());
  const double expected = BitsOf(logits, ReadText(kText).substr(0, 257)) / 256;
  for (const auto& record : Records(2, kScore + "--windows 1 --context 256 --method exact,head")) {
    EXPECT_NEAR(record["bits_per_byte"], expected, 1e-5) << record;
  }
}

TEST_F(LmTest, WindowsAreIndependentDocuments) {
  // More windows than one batch holds, each by a model that runs it alone.
  constexpr int kWindows = 18, kContext = 48;
  const auto config = ReadModelConfig(kModel);
  const auto checkpoint = Checkpoint::Open(kModel);
  ASSERT_TRUE(config.ok() && checkpoint.ok());
  const auto model = launcher::DenseModel::Create(*checkpoint, *config, 1);
  ASSERT_TRUE(model.ok()) << model.status();
  const std::string text = ReadText(kText);
  double bits = 0;
  for (int window = 0; window < kWindows; ++window) {
    const std::string given = text.substr(window * kContext, kContext + 1);
    std::vector<float> logits;
    const std::vector<int> ids = *launcher::Tokenize(given.substr(0, kContext), *config);
    ASSERT_TRUE(model->Forward(ids, {}, &logits).ok());
    bits += BitsOf(logits, given);
  }
  const auto records = Records(1, kScore + "--method exact,tree --windows 18 --context 48");
  for (const auto& record : records) EXPECT_NEAR(record["bits_per_byte"], bits / (kWindows * kContext), 1e-5);
  EXPECT_EQ(records.size(), 2u);
}

TEST_F(LmTest, GeneratesTheSameTextOnAnyNumberOfRanks) {
  const std::string prompt = "In the beginning ";
  const std::string likeliest = Generated(1, "--tokens 12 --temperature 0 --prompt '" + prompt + "'");
  EXPECT_THAT(likeliest, StartsWith(prompt));
  EXPECT_EQ(likeliest.size(), prompt.size() + 12 + 1);
  EXPECT_EQ(Generated(2, "--tokens 12 --temperature 0 --method tree --prompt '" + prompt + "'"), likeliest);
  EXPECT_EQ(Generated(3, "--tokens 12 --temperature 0 --method gather-query --prompt '" + prompt + "'"), likeliest);
  // The likeliest of one is the likeliest.
  EXPECT_EQ(Generated(1, "--tokens 12 --top-k 1 --temperature 50 --prompt '" + prompt + "'"), likeliest);

  const std::string sampled = Generated(1, "--tokens 12 --seed 3 --prompt I");
  EXPECT_THAT(sampled, StartsWith("I"));
  EXPECT_EQ(sampled.size(), 1u + 12 + 1);
  EXPECT_EQ(Generated(2, "--tokens 12 --seed 3 --prompt I"), sampled);
  EXPECT_NE(Generated(1, "--tokens 12 --seed 4 --prompt I"), sampled);
  // So hot that nothing but the cut keeps it to bytes that a text has.
  for (const char byte : Generated(1, "--tokens 12 --top-k 4 --temperature 100 --prompt I")) {
    EXPECT_TRUE(byte == '\n' || (byte >= ' ' && byte <= '~')) << static_cast<int>(byte);
  }
}

TEST_F(LmTest, BenchDecodeChecksEveryMethod) {
  const std::string bench = "bench decode --repeat 1 --context 33 --batch 2 --query-tokens 2 ";
  auto records = Records(2, bench + "--model mla:24,5,8,16,6,4,7");
  ASSERT_EQ(records.size(), 6u);
  const std::vector<std::string> methods = {
      "head", "head", "tpla g=2 mu=one norm=exact", "gather-query", "replicated-query", "tree"};
  for (size_t i = 0; i < records.size(); ++i) {
    const auto& record = records[i];
    EXPECT_EQ(record["schema"], "tessera-decode-1");
    EXPECT_EQ(record["method"], methods[i]);
    EXPECT_EQ(record["ranks"], i == 0 ? 1 : 2);
    EXPECT_EQ(record["ok"], true) << record;
    EXPECT_EQ(record["approximate"], i == 2);
    EXPECT_EQ(record["bytes_predicted"], record["bytes_received"]);
    EXPECT_EQ(record["cache_bytes_per_token_layer"], std::vector<int64_t>(i == 0 ? 1 : 2, (i == 2 ? 8 + 4 : 20) * 2));
    EXPECT_GT(record["seconds"], 0);
    if (i != 2) {
      EXPECT_LT(record["error"], 0.02) << record;
    }
  }
  records = Records(2, bench + "--model gqa:6,3,8 --dtype fp32");
  ASSERT_EQ(records.size(), 5u);  // no latents to shard
  for (const auto& record : records) {
    EXPECT_EQ(record["ok"], true) << record;
    EXPECT_LT(record["error"], 1e-5) << record;
    EXPECT_EQ(record["bytes_predicted"], record["bytes_received"]);
    EXPECT_NE(record["method"], "tpla g=2 mu=one norm=exact");
  }
  // On one rank there is nobody to compare with but fp64.
  records = Records(1, bench + "--model mla:24,5,0,16,6,4,7 --method head,tree --dtype fp32");
  ASSERT_EQ(records.size(), 2u);
  for (const auto& record : records) EXPECT_LT(record["error"], 1e-5) << record;
  records = Records(1, bench + "--model gqa:6,3,8 --method head --no-verify");
  ASSERT_EQ(records.size(), 1u);
  EXPECT_TRUE(records[0]["error"].is_null());
}

TEST_F(LmTest, CalibratedMethodsNeedWhatAConversionMeasured) {
  const std::string text = Write("text", ReadText(kText).substr(0, 2048));
  const std::string convert = "mla convert --model " + kModel + " --output ";
  Outcome outcome = RunAlone(convert + Path("pca") + " --transform pca --groups 2 --calibration " + text);
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  outcome = RunAlone(convert + Path("plain") + " --transform hadamard");
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  const std::string windows = " --text " + kText + " --windows 2 --context 64 --prefix 0.5 --method ";

  const auto records = Records(
      2, "score --model " + Path("pca") + windows + "exact,tpla --mu one,inverse-energy,calibrated --norm exact,local");
  ASSERT_EQ(records.size(), 7u);
  const double exact = records[0]["bits_per_byte"];
  std::vector<double> bits;
  for (const auto& record : records) {
    EXPECT_TRUE(std::ranges::none_of(bits, [&](double other) { return other == record["bits_per_byte"]; })) << record;
    bits.push_back(record["bits_per_byte"]);
    EXPECT_TRUE(std::isfinite(bits.back()) && bits.back() > 0.99 * exact) << record;
  }
  EXPECT_EQ(records[5]["method"], "tpla g=2 mu=calibrated norm=exact");
  EXPECT_EQ(records[6]["method"], "tpla g=2 mu=calibrated norm=local");
  EXPECT_LT(bits[5], 1.5 * exact);
  // Dividing by a small share of energy multiplies small logits by a large number.
  EXPECT_GT(bits[3], bits[5]);

  ExpectRefused(RunAlone("score --model " + kModel + windows + "tpla --mu calibrated"), kRefused,
                "tpla g=1 mu=calibrated norm=exact needs what a conversion measures");
  ExpectRefused(RunAlone("score --model " + Path("pca") + windows + "tpla --mu calibrated"), kRefused,
                "needs fitted multipliers, and " + Path("pca") +
                    " records none for layer 0: convert the model with "
                    "`tessera mla convert --calibration` --groups 1");
  ExpectRefused(RunAlone("score --model " + Path("plain") + windows + "tpla --norm local"), kRefused,
                "needs the energy of the latents");
  ExpectRefused(RunRanks(2, "generate --model " + kModel + " --prompt I --method tpla --norm local"), kRefused,
                "tpla g=2 mu=one norm=local needs what a conversion measures");
}

TEST_F(LmTest, ModelsThatDoNotServe) {
  const auto score = [&](const std::string& model) {
    return RunAlone("score --windows 1 --context 16 --model " + model + " --text " + kText);
  };
  ExpectRefused(score(Path("absent")), kBadInput, "cannot open " + Path("absent"));
  const std::string model = CopyModel("model");
  WriteConfig(model, {{"kv_lora_rank", 96}});
  ExpectRefused(score(model), kBadInput, "is BF16 [160, 256]; needed: [128, 256]");
  WriteConfig(model, {{"num_hidden_layers", 5}});
  ExpectRefused(score(model), kBadInput, "no tensor \"model.layers.4.input_layernorm.weight\"");
  WriteConfig(model, {{"n_routed_experts", 8}, {"first_k_dense_replace", 1}});
  ExpectRefused(score(model), kRefused, "n_routed_experts 8 with first_k_dense_replace 1 of 4 layers");
  WriteConfig(model, {{"hidden_act", "gelu"}});
  ExpectRefused(score(model), kRefused, "hidden_act \"gelu\": only \"silu\" is supported");
  WriteConfig(model, {{"tokenizer", "words"}});
  ExpectRefused(score(model), kRefused, "only models of bytes");
  WriteConfig(model, nlohmann::json::object());

  const std::string original = ReadText(kModel + "/model.safetensors");
  std::string bytes = original;
  bytes.replace(bytes.find("model.norm.weight"), 10, "model.gone");
  Write("model/model.safetensors", bytes);
  ExpectRefused(score(model), kBadInput, "no tensor \"model.norm.weight\"");
  const auto file = SafetensorsFile::Open(kModel + "/model.safetensors");
  ASSERT_TRUE(file.ok());
  for (const std::string name : {"model.layers.1.mlp.up_proj.weight", "model.layers.2.self_attn.o_proj.weight"}) {
    const auto tensor = file->Find(name);
    ASSERT_TRUE(tensor.ok()) << tensor.status();
    bytes = original;
    const size_t at = bytes.size() - file->tensors().back().end_byte + (*tensor)->begin_byte + 2 * 3;
    bytes[at] = '\xff';
    bytes[at + 1] = '\x7f';
    Write("model/model.safetensors", bytes);
    ExpectRefused(score(model), kBadInput, "\"" + name + "\" holds nan at [0, 3]");
  }
  Write("model/model.safetensors", original.substr(0, 1000000));
  ExpectRefused(score(model), kBadInput, "model.safetensors");
}

TEST_F(LmTest, TextsAndFlagsThatDoNotServe) {
  ExpectRefused(RunAlone("score --model " + kModel + " --text " + Path("absent")), kBadInput, "absent: cannot be read");
  ExpectRefused(RunAlone(kScore + "--context 513"), kBadInput,
                "--context 513: the model supports at most 512 positions");
  ExpectRefused(RunAlone("score --model " + kModel + " --context 64 --text " + Write("short", std::string(64, 'a'))),
                kBadInput, "short has 64 bytes; a window of --context 64 needs 65");
  ExpectRefused(RunAlone(kScore + "--method fast"), kUsage, "fast not in {exact,head,tpla");
  ExpectRefused(RunAlone(kScore + "--mu two"), kUsage, "two not in {one,inverse-energy,calibrated}");
  ExpectRefused(RunAlone(kScore + "--prefix 1.5"), kUsage, "--prefix");
  ExpectRefused(RunAlone(kScore + "--json " + Path("no/folder")), kSystem, "does not exist or is not writable");
  ExpectRefused(RunRanks(4, kScore + "--method tpla --groups 3"), kBadInput,
                "--groups 3 does not divide 4 ranks; allowed: 1, 2, 4");
  ExpectRefused(RunRanks(3, kScore + "--context 16 --windows 1 --method tpla"), kBadInput,
                "groups is 3; it must be one of 1: it divides 3 ranks and the latent width 128");

  const std::string generate = "generate --model " + kModel + " ";
  ExpectRefused(RunAlone(generate + "--prompt ''"), kBadInput, "--prompt is empty");
  ExpectRefused(RunAlone(generate + "--prompt abc --tokens 510"), kBadInput,
                "--prompt of 3 tokens and --tokens 510: the model supports 512 positions");
  ExpectRefused(RunAlone(generate + "--prompt a --method head,tree"), kUsage, "needs one --method that decodes");
  ExpectRefused(RunAlone(generate + "--prompt a --method exact"), kUsage, "needs one --method that decodes");
  ExpectRefused(RunAlone(generate + "--prompt abc --kernel fast"), kRefused, "no attention kernel called \"fast\"");
  ExpectRefused(RunAlone(kScore + "--method head --kernel fast"), kRefused, "no attention kernel called \"fast\"");
  ExpectRefused(RunAlone(generate), kUsage, "--prompt is required");

  ExpectRefused(RunAlone("bench decode --model tiny"), kBadInput, "--model tiny: allowed are deepseek-v2-lite");
  ExpectRefused(RunAlone("bench decode --model mla:1,2,3"), kBadInput, "mla:D,h,q_rank,C,dn,dr,dv");
  ExpectRefused(RunAlone("bench decode --model mla:20,4,0,8,4,3,4"), kBadInput, "rope is 3");
  ExpectRefused(RunAlone("bench decode --model gqa:5,2,8"), kBadInput, "heads must be a multiple of kv_heads");
  ExpectRefused(RunAlone("bench decode --model gqa:4,2,8 --json " + Path("no/folder")), kSystem,
                "does not exist or is not writable");
  const Outcome odd = RunRanks(2, "bench decode --model mla:24,5,8,15,6,4,7 --context 9 --repeat 1 --method tpla");
  EXPECT_EQ(odd.exit_code, 1) << odd.err;
  EXPECT_THAT(odd.out, HasSubstr("groups is 2; it must be one of 1: it divides 2 ranks and the latent width 15"));
}

}  // namespace
}  // namespace tessera::launcher_test
