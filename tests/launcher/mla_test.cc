// tessera mla on the bundled model: what conversions promise, and every way to ask for one that cannot be.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <csignal>
#include <cstring>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>

#include "launcher/lm/dense_model.h"
#include "launcher/lm/text.h"
#include "runtime/latent/latent_record.h"
#include "tests/launcher/bundled_model.h"

namespace tessera::launcher_test {
namespace {

using ::testing::HasSubstr;
namespace fs = std::filesystem;

#ifdef TESSERA_SANITIZED
constexpr int kTokens = 64, kMoments = 4;
#else
constexpr int kTokens = 256, kMoments = 10;
#endif

std::vector<std::byte> Bytes(const SafetensorsFile& file, const std::string& name) {
  const auto tensor = file.Find(name);
  EXPECT_TRUE(tensor.ok()) << tensor.status();
  const auto bytes = tensor.ok() ? file.Bytes(**tensor) : std::span<const std::byte>();
  return {bytes.begin(), bytes.end()};
}

// Logits of the first tokens of the reference, [n, 256].
std::vector<float> Logits(const std::string& directory, int tokens) {
  const auto config = ReadModelConfig(directory);
  const auto checkpoint = Checkpoint::Open(directory);
  EXPECT_TRUE(config.ok() && checkpoint.ok()) << checkpoint.status();
  if (!config.ok() || !checkpoint.ok()) return {};
  const auto model = launcher::DenseModel::Create(*checkpoint, *config, 1);
  EXPECT_TRUE(model.ok()) << model.status();
  const std::vector<int> ids = *launcher::Tokenize(ReadText(kText).substr(0, tokens), *config);
  std::vector<float> logits;
  EXPECT_TRUE(model->Forward(ids, {}, &logits).ok());
  return logits;
}

double RelativeError(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0, size = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    difference += std::pow(double{a[i]} - b[i], 2);
    size += std::pow(double{b[i]}, 2);
  }
  return a.size() == b.size() ? std::sqrt(difference / size) : INFINITY;
}

class MlaTest : public BundledModelTest {
 protected:
  void SetUp() override {
    BundledModelTest::SetUp();
    text_ = Write("text", ReadText(kText).substr(0, kTextBytes));
  }
  void TearDown() override {
    for (const std::string& name : FilesInFolder()) EXPECT_EQ(name.find(".tmp-"), std::string::npos) << name;
    BundledModelTest::TearDown();
  }
  Outcome Convert(const std::string& flags, const std::string& model = kModel) const {
    return RunAlone("mla convert --model " + model + " --output " + Path("out") + " " + flags);
  }
  void ExpectRefused(const Outcome& outcome, int code, const std::string& message) {
    EXPECT_EQ(outcome.exit_code, code) << outcome.err;
    EXPECT_THAT(outcome.err, HasSubstr(message));
    EXPECT_FALSE(fs::exists(Path("out")));
  }
  static constexpr int kTextBytes = 2048;
  std::string text_;
  // Moments of the right shape that favour the first latent columns. Only layers below `layers`.
  std::string WriteMoments(const std::string& name, int64_t tokens, int layers) const {
    std::vector<SafetensorsEntry> entries;
    for (int layer = 0; layer < layers; ++layer) {
      entries.push_back({absl::StrCat("layers.", layer, ".latent_moment"), DType::kFloat32, {128, 128}});
    }
    auto writer = SafetensorsWriter::Create(Path(name), entries, 1, {{"tokens", absl::StrCat(tokens)}});
    EXPECT_TRUE(writer.ok()) << writer.status();
    std::vector<float> values(128 * 128);
    for (int i = 0; i < 128; ++i) values[i * 129] = i < 32 ? 3.5f : 0.5f / 3;
    for (const auto& entry : entries) {
      EXPECT_TRUE(writer->WriteBytes(entry.name, std::as_bytes(std::span(values))).ok());
    }
    EXPECT_TRUE(writer->Commit().ok());
    return Path(name);
  }
};

TEST(DenseModel, ComputesTheReferenceLogits) {
  const auto reference = SafetensorsFile::Open(kModel + "/reference_logits.safetensors");
  ASSERT_TRUE(reference.ok()) << reference.status();
  std::vector<float> tokens(256), expected(256 * 256);
  std::memcpy(tokens.data(), Bytes(*reference, "tokens").data(), tokens.size() * sizeof(float));
  std::memcpy(expected.data(), Bytes(*reference, "logits").data(), expected.size() * sizeof(float));
  const std::string text = ReadText(kText);
  for (int i = 0; i < 256; ++i) ASSERT_EQ(static_cast<unsigned char>(text[i]), tokens[i]);
  EXPECT_LE(RelativeError(Logits(kModel, 256), expected), 1e-5);
}

TEST_F(MlaTest, EveryTransformKeepsTheModel) {
  const std::vector<float> expected = Logits(kModel, kTokens);
  const auto original = SafetensorsFile::Open(kModel + "/model.safetensors");
  ASSERT_TRUE(original.ok());
  const std::string moments = WriteMoments("moments.safetensors", 1000, 4);
  const std::vector<std::pair<std::string, std::string>> cases = {{"identity", "identity"},
                                                                  {"hadamard", "hadamard --seed 7"},
                                                                  {"pca", "pca --groups 2,4 --calibration " + text_},
                                                                  {"pca", "pca --moments " + moments}};
  for (const auto& [name, flags] : cases) {
    const Outcome outcome = Convert("--force --transform " + flags);
    ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
    // The weights are rounded to bf16 once more: up to 2^-9 each, and their errors average out.
    const double error = RelativeError(Logits(Path("out"), kTokens), expected);
    EXPECT_LE(error, 2e-3) << flags;
    EXPECT_GT(error, 1e-6) << flags << " changed nothing";
    const auto converted = SafetensorsFile::Open(Path("out/model.safetensors"));
    ASSERT_TRUE(converted.ok()) << converted.status();
    int changed = 0;
    for (const SafetensorsTensor& tensor : original->tensors()) {
      changed += Bytes(*original, tensor.name) != Bytes(*converted, tensor.name);
    }
    EXPECT_EQ(changed, 4 * (name == "identity" ? 2 : 3)) << flags;  // identity leaves kv_a_proj_with_mqa
    const std::string rope = "model.layers.2.self_attn.kv_a_proj_with_mqa.weight";
    const auto before = Bytes(*original, rope), after = Bytes(*converted, rope);
    EXPECT_TRUE(std::equal(before.begin() + 128 * 512, before.end(), after.begin() + 128 * 512));
    EXPECT_EQ(ReadText(Path("out/config.json")), ReadText(kModel + "/config.json"));
    EXPECT_EQ(ReadText(Path("out/README.md")), ReadText(kModel + "/README.md"));
    EXPECT_FALSE(fs::exists(Path("out/reference_logits.safetensors")));

    const auto record = ReadLatentRecord(converted->metadata(), 4, 128);
    ASSERT_TRUE(record.ok()) << record.status();
    ASSERT_TRUE(record->has_value());
    EXPECT_EQ(Name((*record)->transform), name);
    EXPECT_EQ((*record)->layers[3].column_energy.empty(), name != "pca");
    if (flags.find(text_) == std::string::npos) continue;
    EXPECT_EQ((*record)->tokens, kTextBytes);
    const std::vector<double> shares = EnergyShares((*record)->layers[3], 2);
    EXPECT_GT(shares[0], 0.7);
    EXPECT_NEAR(shares[0] + shares[1], 1, 1e-9);
    EXPECT_EQ((*record)->layers[3].mu.at(4).size(), 4u);
    EXPECT_THAT(outcome.out, HasSubstr("energy"));
    // What was measured then can be looked up now.
    const Outcome inspected = RunAlone("mla inspect --model " + Path("out") + " --groups 2,8");
    EXPECT_EQ(inspected.exit_code, 0) << inspected.err;
    EXPECT_THAT(inspected.out, HasSubstr(absl::StrFormat("%.3f %.3f", shares[0], shares[1])));
  }
}

TEST_F(MlaTest, SeedsAndMatricesChooseTheBasis) {
  const auto weights = [&](const std::string& flags) {
    const Outcome outcome = Convert("--force --transform " + flags);
    EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
    return ReadText(Path("out/model.safetensors"));
  };
  EXPECT_EQ(weights("hadamard --seed 7"), weights("hadamard --seed 7"));
  EXPECT_NE(weights("hadamard --seed 7"), weights("hadamard --seed 8"));

  // The Hadamard basis of layer 2, given as a matrix to all layers.
  const auto basis = HadamardBasis(128, 9);
  ASSERT_TRUE(basis.ok());
  const auto write = [&](double scale) {
    const std::vector<SafetensorsTensor> tensors = {{"basis", "F64", std::nullopt, {128, 128}, 0, 128 * 128 * 8}};
    auto writer = SafetensorsWriter::CreateLike(Path("basis.safetensors"), tensors, 1);
    EXPECT_TRUE(writer.ok()) << writer.status();
    std::vector<double> values = basis->values;
    for (double& value : values) value *= scale;
    EXPECT_TRUE(writer->WriteBytes("basis", std::as_bytes(std::span(values))).ok());
    EXPECT_TRUE(writer->Commit().ok());
  };
  write(1.0);
  weights("matrix:" + Path("basis.safetensors"));
  const auto by_matrix = SafetensorsFile::Open(Path("out/model.safetensors"));
  ASSERT_TRUE(by_matrix.ok());
  const std::string up = "model.layers.2.self_attn.kv_b_proj.weight";
  const auto matrix_bytes = Bytes(*by_matrix, up);
  weights("hadamard --seed 7");
  EXPECT_EQ(matrix_bytes, Bytes(*SafetensorsFile::Open(Path("out/model.safetensors")), up));
  write(1.1);
  fs::remove_all(Path("out"));
  ExpectRefused(Convert("--transform matrix:" + Path("basis.safetensors")), kBadInput, "not orthogonal");
  ExpectRefused(Convert("--transform matrix:" + Path("absent")), kBadInput, "cannot open " + Path("absent"));
  ExpectRefused(Convert("--transform matrix:" + WriteMoments("other", 1000, 1)), kBadInput,
                "no tensor \"layers.0.basis\"");
}

TEST_F(MlaTest, ShardsGiveTheSameTensors) {
  const auto whole = SafetensorsFile::Open(kModel + "/model.safetensors");
  ASSERT_TRUE(whole.ok());
  fs::create_directories(Path("sharded"));
  fs::copy_file(kModel + "/config.json", Path("sharded/config.json"));
  // Cut within a layer: its kv_a is in the first file, its kv_b in the second.
  nlohmann::json index = {{"weight_map", nlohmann::json::object()}};
  std::vector<std::vector<SafetensorsTensor>> shards(2);
  for (const SafetensorsTensor& tensor : whole->tensors()) {
    const int shard = tensor.begin_byte >= 1869568;
    SafetensorsTensor moved = tensor;
    const int64_t begin = shards[shard].empty() ? 0 : shards[shard].back().end_byte;
    moved.end_byte += begin - moved.begin_byte;
    moved.begin_byte = begin;
    shards[shard].push_back(moved);
    index["weight_map"][tensor.name] = absl::StrCat("model-", shard, ".safetensors");
  }
  for (int shard = 0; shard < 2; ++shard) {
    auto writer = SafetensorsWriter::CreateLike(Path(absl::StrCat("sharded/model-", shard, ".safetensors")),
                                                shards[shard], 1, {{"format", "pt"}});
    ASSERT_TRUE(writer.ok()) << writer.status();
    for (const SafetensorsTensor& tensor : shards[shard]) {
      ASSERT_TRUE(writer->WriteBytes(tensor.name, Bytes(*whole, tensor.name)).ok());
    }
    ASSERT_TRUE(writer->Commit().ok());
  }
  Write("sharded/model.safetensors.index.json", index.dump());

  const std::string flags = "--force --transform pca --moments " + WriteMoments("moments.safetensors", 1000, 4);
  ASSERT_EQ(Convert(flags).exit_code, 0);
  const auto expected = SafetensorsFile::Open(Path("out/model.safetensors"));
  ASSERT_TRUE(expected.ok());
  const Outcome outcome = Convert(flags, Path("sharded"));
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  const auto converted = Checkpoint::Open(Path("out"));
  ASSERT_TRUE(converted.ok()) << converted.status();
  ASSERT_EQ(converted->files().size(), 2u);
  for (const SafetensorsFile& file : converted->files()) {
    EXPECT_EQ(file.metadata().at("format"), "pt");
    for (const SafetensorsTensor& tensor : file.tensors()) {
      EXPECT_EQ(Bytes(file, tensor.name), Bytes(*expected, tensor.name)) << tensor.name;
    }
  }
  const auto record = ReadLatentRecord(converted->metadata(), 4, 128);
  ASSERT_TRUE(record.ok()) << record.status();
  EXPECT_EQ((*record)->layers.size(), 4u);
}

TEST_F(MlaTest, SecondConversionsAreRefused) {
  ASSERT_EQ(Convert("--transform hadamard").exit_code, 0);
  fs::rename(Path("out"), Path("once"));
  ExpectRefused(Convert("--transform identity", Path("once")), kRefused, "was converted before (transform hadamard)");
}

TEST_F(MlaTest, ExistingOutputsSurvive) {
  fs::create_directories(Path("out"));
  Write("out/precious", "precious");
  const auto expect_kept = [&](const Outcome& outcome, int code, const std::string& message) {
    EXPECT_EQ(outcome.exit_code, code) << outcome.err;
    EXPECT_THAT(outcome.err, HasSubstr(message));
    EXPECT_EQ(ReadText(Path("out/precious")), "precious");
  };
  expect_kept(Convert("--transform identity"), kBadInput, "exists; give --force to replace it");
  // Files above 512 KiB cannot be made: as on a full disk, the conversion fails once it writes.
  const std::string convert = TESSERA_TEST_PROGRAM " mla convert --transform identity --model " + kModel + " --output ";
  const std::string limited = "trap '' XFSZ; ulimit -f 1024; ";
  expect_kept(RunShell(limited + convert + Path("out") + " --force"), kBadInput, "cannot reserve");
  EXPECT_EQ(RunShell(limited + convert + Path("new")).exit_code, kBadInput);
  EXPECT_FALSE(fs::exists(Path("new")));
  const std::string before = ReadText(kModel + "/model.safetensors");
  EXPECT_EQ(Convert("--transform identity --force").exit_code, 0);
  EXPECT_FALSE(fs::exists(Path("out/precious")));
  EXPECT_TRUE(fs::exists(Path("out/model.safetensors")));
  EXPECT_EQ(ReadText(kModel + "/model.safetensors"), before);
}

// Sent at many moments of a conversion; whichever they hit, there is a complete model or none.
TEST_F(MlaTest, SignalsLeaveAllOrNothing) {
  for (const int signal : {SIGKILL, SIGTERM, SIGINT}) {
    int interrupted = 0;
    for (int moment = 0; moment < kMoments; ++moment) {
      const pid_t child = fork();
      ASSERT_GE(child, 0);
      if (child == 0) {
        const int quiet = open("/dev/null", O_WRONLY);
        dup2(quiet, STDOUT_FILENO);
        dup2(quiet, STDERR_FILENO);
        execl(TESSERA_TEST_PROGRAM, TESSERA_TEST_PROGRAM, "mla", "convert", "--transform", "hadamard", "--model",
              kModel.c_str(), "--output", Path("out").c_str(), nullptr);
        _exit(127);
      }
      // From its first instructions to after its end.
      usleep(12000 * moment);
      kill(child, signal);
      int status = 0;
      ASSERT_EQ(waitpid(child, &status, 0), child);
      if (WIFSIGNALED(status)) {
        ++interrupted;
        EXPECT_EQ(WTERMSIG(status), signal);
      } else {
        EXPECT_EQ(WEXITSTATUS(status), 0);
        EXPECT_TRUE(fs::exists(Path("out")));
      }
      if (fs::exists(Path("out"))) {
        const auto checkpoint = Checkpoint::Open(Path("out"));
        ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
        const auto record = ReadLatentRecord(checkpoint->metadata(), 4, 128);
        EXPECT_TRUE(record.ok() && record->has_value()) << record.status();
        EXPECT_TRUE(fs::exists(Path("out/config.json")));
      }
      for (const std::string& name : FilesInFolder()) {
        // Only what nobody could clean up after may remain, under a name that says so.
        if (name == "text") continue;
        if (name != "out") {
          EXPECT_EQ(signal, SIGKILL) << name;
          EXPECT_THAT(name, HasSubstr("out.tmp-"));
        }
        fs::remove_all(Path(name));
      }
    }
    EXPECT_GT(interrupted, 0) << "signal " << signal << " came too late every time";
  }
}

TEST_F(MlaTest, TextsMomentsAndGroupsThatDoNotServe) {
  ExpectRefused(Convert("--transform pca"), kUsage, "--transform pca needs --calibration or --moments");
  ExpectRefused(Convert("--transform fourier"), kUsage, "\"fourier\"; allowed: identity, hadamard, pca, matrix:FILE");
  ExpectRefused(Convert("--transform matrix"), kUsage, "\"matrix\"; allowed: identity");
  ExpectRefused(Convert("--transform pca --calibration " + Path("absent")), kBadInput, "cannot open calibration text");
  ExpectRefused(Convert("--transform pca --calibration " + Write("short", std::string(127, 'a'))), kBadInput,
                "has 127 bytes; needed: at least 128 tokens");
  ExpectRefused(Convert("--transform pca --calibration " + text_ + " --moments x"), kUsage, "--moments");
  ExpectRefused(Convert("--transform identity --groups 2,3"), kBadInput,
                "--groups 3 does not divide the 128 columns of the latent; allowed: 1, 2, 4, 8, 16, 32, 64, 128");
  ExpectRefused(Convert("--transform identity --groups 0"), kBadInput, "--groups 0 does not divide");
  ExpectRefused(Convert("--transform pca --moments " + WriteMoments("few", 127, 4)), kBadInput,
                "metadata \"tokens\" is \"127\"; allowed: a count of at least 128");
  ExpectRefused(Convert("--transform pca --moments " + WriteMoments("layers", 1000, 3)), kBadInput,
                "no tensor \"layers.3.latent_moment\"");
  ExpectRefused(RunAlone("mla inspect --model " + kModel), kRefused, "give --calibration or --moments");
  ExpectRefused(RunAlone("mla"), kUsage, "subcommand");
}

TEST_F(MlaTest, ModelsThatDoNotServe) {
  ExpectRefused(Convert("--transform identity", Path("absent")), kBadInput, "cannot open " + Path("absent"));
  ExpectRefused(RunAlone("mla convert --transform identity --model " + kModel + " --output " + Path("no/folder")),
                kSystem, "does not exist or is not writable");
  std::string model = CopyModel("inside");
  ExpectRefused(RunAlone("mla convert --transform identity --model " + model + " --output " + model + "/out"),
                kBadInput, "contain one another");
  ExpectRefused(RunAlone("mla convert --transform identity --force --model " + model + " --output " + model + "/"),
                kBadInput, "contain one another");
  WriteConfig(model, {{"kv_lora_rank", 96}});
  ExpectRefused(Convert("--transform identity", model), kBadInput, "is BF16 [160, 256]; needed: [128, 256]");
  WriteConfig(model, {{"num_hidden_layers", 5}});
  ExpectRefused(Convert("--transform identity", model), kBadInput,
                "no tensor \"model.layers.4.self_attn.q_proj.weight\"; nearest names: ");
  WriteConfig(model, {{"tokenizer", ""}});
  ExpectRefused(Convert("--transform pca --calibration " + text_, model), kRefused, "(--moments)");
  WriteConfig(model, {{"n_routed_experts", 8}, {"first_k_dense_replace", 1}});
  ExpectRefused(Convert("--transform pca --calibration " + text_, model), kRefused, "n_routed_experts 8");

  // One NaN among the weights of layer 1.
  std::string bytes = ReadText(kModel + "/model.safetensors");
  const auto file = SafetensorsFile::Open(kModel + "/model.safetensors");
  ASSERT_TRUE(file.ok());
  const auto tensor = file->Find("model.layers.1.self_attn.kv_b_proj.weight");
  ASSERT_TRUE(tensor.ok());
  const size_t data = bytes.size() - file->tensors().back().end_byte;
  bytes[data + (*tensor)->begin_byte + 2 * 130] = '\xff';
  bytes[data + (*tensor)->begin_byte + 2 * 130 + 1] = '\x7f';
  model = CopyModel("nan");
  Write("nan/model.safetensors", bytes);
  ExpectRefused(Convert("--transform identity", model), kBadInput,
                "tensor \"model.layers.1.self_attn.kv_b_proj.weight\" holds nan at [1, 2]");
  // Weights that are finite, but whose products are not, show in what the model computes.
  bytes = ReadText(kModel + "/model.safetensors");
  const auto mlp = file->Find("model.layers.1.mlp.up_proj.weight");
  ASSERT_TRUE(mlp.ok());
  for (size_t column = 0; column < 256; ++column) {
    bytes[data + (*mlp)->begin_byte + 2 * column] = '\x7f';
    bytes[data + (*mlp)->begin_byte + 2 * column + 1] = '\x7f';
  }
  Write("nan/model.safetensors", bytes);
  ExpectRefused(Convert("--transform hadamard --calibration " + text_, model), kBadInput,
                "the latents of layer 2 are not finite");
  // The weights are cut off.
  Write("nan/model.safetensors", bytes.substr(0, 1000000));
  ExpectRefused(Convert("--transform identity", model), kBadInput, "model.safetensors");
}

TEST_F(MlaTest, InspectComparesBases) {
  const std::string json = Path("figures.json");
  const Outcome outcome =
      RunAlone("mla inspect --groups 2,4 --model " + kModel + " --calibration " + text_ + " --json " + json);
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_THAT(outcome.out, HasSubstr("logit error"));
  const nlohmann::json document = nlohmann::json::parse(ReadText(json), nullptr, false);
  ASSERT_TRUE(document.is_object());
  ASSERT_EQ(document["cuts"].size(), 4u * 3 * 2);
  for (int layer = 0; layer < 4; ++layer) {
    std::map<std::string, double> first, error;  // energy of the first of two groups, and what the cut costs
    for (const auto& cut : document["cuts"]) {
      double sum = 0;
      for (const double share : cut["energy"]) sum += share;
      EXPECT_NEAR(sum, 1, 1e-9);
      for (size_t i = 0; i < cut["mu"].size(); ++i) EXPECT_LE(cut["fitted_logit_error"][i], cut["logit_error"][i]);
      if (cut["layer"] == layer && cut["groups"] == 2) {
        first[cut["basis"]] = cut["energy"][0];
        error[cut["basis"]] = cut["weighted_logit_error"];
      }
    }
    EXPECT_GT(first["pca"], first["identity"]);
    EXPECT_NEAR(first["hadamard"], 0.5, 0.2);
    EXPECT_LT(error["pca"], error["identity"] / 4);  // this model's latents fill less than half of their columns
  }
  ExpectRefused(RunAlone("mla inspect --model " + kModel + " --calibration " + text_ + " --json " + text_), kBadInput,
                "is the same file as --calibration");
}

}  // namespace
}  // namespace tessera::launcher_test
