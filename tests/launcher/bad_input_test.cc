// Every way to ask wrongly ends with one line that names the fault, the documented code, and no file touched.
#include <gmock/gmock.h>

#include "tests/launcher/program.h"

namespace tessera::launcher_test {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr int kUsage = 2, kBadInput = 3, kRefused = 4, kSystem = 6;

class BadInputTest : public ProgramTest {
 protected:
  void SetUp() override {
    ProgramTest::SetUp();
    good_ = WriteQkv("good.safetensors", DType::kFloat32, {9, 2, 4}, {9, 1, 4}, {9, 1, 3});
    Write("out.safetensors", "precious");
  }
  void TearDown() override {
    EXPECT_EQ(ReadText(Path("out.safetensors")), "precious") << "an existing output must survive";
    for (const std::string& name : FilesInFolder()) EXPECT_EQ(name.find(".tmp-"), std::string::npos) << name;
    ProgramTest::TearDown();
  }
  void ExpectRefused(const Outcome& outcome, int code, const std::string& message) {
    EXPECT_EQ(outcome.exit_code, code) << outcome.err;
    EXPECT_THAT(outcome.err, HasSubstr(message));
    const std::string marker = "tessera: error: ";
    const size_t first = outcome.err.find(marker);
    EXPECT_NE(first, std::string::npos) << outcome.err;
    EXPECT_EQ(outcome.err.find(marker, first + 1), std::string::npos) << "printed more than once:\n" << outcome.err;
  }
  void ExpectAttendRefused(const std::string& input, const std::string& flags, int code, const std::string& message) {
    ExpectRefused(RunRanks(2, "attend --input " + input + " --output " + Path("out.safetensors") + " " + flags), code,
                  message);
  }
  std::string good_;
};

TEST_F(BadInputTest, FilesThatAreNotSafetensors) {
  ExpectAttendRefused(Path("absent"), "", kBadInput, "cannot open " + Path("absent"));
  ExpectAttendRefused(Write("empty", ""), "", kBadInput, "0 bytes; a safetensors file begins with");
  ExpectAttendRefused(Write("huge", std::string(8, '\xff')), "", kBadInput, "header length 18446744073709551615");
  const std::string whole = ReadText(good_);
  ExpectAttendRefused(Write("cut", whole.substr(0, whole.size() - 5)), "", kBadInput, "tensor \"v\": data_offsets");
}

TEST_F(BadInputTest, TensorsThatDisagree) {
  const auto file = [&](std::vector<int64_t> q, std::vector<int64_t> k, std::vector<int64_t> v) {
    return WriteQkv("bad.safetensors", DType::kBFloat16, q, k, v);
  };
  ExpectAttendRefused(file({9, 2, 4}, {9, 2, 5}, {9, 2, 4}), "", kBadInput,
                      "tensor \"q\" is BF16 [9, 2, 4] but tensor \"k\" is BF16 [9, 2, 5]");
  ExpectAttendRefused(file({9, 2, 4}, {9, 2, 4}, {8, 2, 4}), "", kBadInput, "k and v have equally many tokens");
  ExpectAttendRefused(file({9, 3, 4}, {9, 2, 4}, {9, 2, 4}), "", kBadInput, "are a multiple of the heads of k");
}

TEST_F(BadInputTest, TypesThatAreNotServed) {
  std::string bytes = ReadText(good_);
  for (size_t at = bytes.find("\"F32\""); at != std::string::npos; at = bytes.find("\"F32\"", at)) {
    bytes.replace(at, 5, "\"I32\"");
  }
  ExpectAttendRefused(Write("integers", bytes), "", kBadInput, "is I32 [9, 2, 4]; allowed: types F32, BF16 and F16");
}

TEST_F(BadInputTest, Masks) {
  ExpectAttendRefused(good_, "--mask diagonal", kBadInput, "mask \"diagonal\" is unknown; allowed: causal");
  ExpectAttendRefused(good_, "--mask window:0", kBadInput, "the window is \"0\"; allowed: 1 or more");
  ExpectAttendRefused(good_, "--mask window:x", kBadInput, "the window is \"x\"");
  ExpectAttendRefused(good_, "--mask documents:", kBadInput, "mask \"documents:\": the file name is missing");
  const auto documents = [&](const std::string& text, const std::string& message) {
    const std::string path = Write("documents", text);
    ExpectAttendRefused(good_, "--mask documents:" + path, kBadInput, message);
  };
  documents("0 4 x 9", "boundary 2 is \"x\"; allowed: integers");
  documents("0 5 4 9", Path("documents"));  // reversed
  documents("0 4 10", Path("documents"));   // beyond the end
  documents("-1 9", Path("documents"));     // negative
  ExpectAttendRefused(good_, "--mask documents:" + Path("absent"), kBadInput, "cannot open document boundaries");
}

TEST_F(BadInputTest, Flags) {
  ExpectAttendRefused(good_, "--colour blue", kUsage, "--colour");
  ExpectAttendRefused(good_, "--threads 0", kUsage, "--threads");
  const Outcome none = RunAlone("attend --input " + good_ + " --verify 0");
  ExpectRefused(none, kUsage, "--verify: Value 0 not in range");
  EXPECT_LT(none.err.size(), 200u) << none.err;
  ExpectRefused(RunRanks(2, "attend --input " + good_), kUsage, "needs --output, --verify or both");
  ExpectRefused(RunAlone("attend"), kUsage, "--input is required");
  ExpectRefused(RunAlone(""), kUsage, "subcommand");
  ExpectRefused(RunAlone("bench scaling --seq -4"), kUsage, "--seq");
  ExpectRefused(RunRanks(2, "bench scaling --seq 8 --ranks 1,3"), kBadInput, "--ranks 3; allowed: 1 to 2");
  ExpectRefused(RunAlone("plan --seq 8 --ranks 0"), kUsage, "--ranks");
  ExpectRefused(RunAlone("plan --seq 8 --ranks 65537"), kUsage, "--ranks");
}

TEST_F(BadInputTest, Environment) {
  ExpectRefused(RunShell("TESSERA_THREADS=many " TESSERA_TEST_PROGRAM " doctor"), kBadInput,
                "environment variable TESSERA_THREADS is \"many\"; allowed: 1 to 4096");
}

TEST_F(BadInputTest, KernelProblems) {
  for (const std::string problem :
       {"8/3/64/64", "8/8/64", "8/8/64/0", "sideways:8/8/64/64", "forward:8/8/64/64:0", "forward:8/8/64/64:4k",
        "forward:2/1/576/512/latent:64", "decode:8/8/64/64:64:causal", "decode:1/1/64/65/latent"}) {
    ExpectRefused(RunAlone("bench kernel --problem " + problem), kBadInput,
                  "--problem " + problem + "; allowed: [OPERATION:]HEADS/KV_HEADS/QK_WIDTH/V_WIDTH[/latent]");
  }
  ExpectRefused(RunAlone("bench kernel --problem forward:8/8/64/64:64:diagonal"), kBadInput,
                "mask \"diagonal\" is unknown; allowed: causal, full, window:W");
  ExpectRefused(RunAlone("bench kernel --problem forward:1/1/8/8:64 --read-mebibytes 1 --kernel abacus"), kRefused,
                "no kernel called \"abacus\" ran");
}

TEST_F(BadInputTest, StrategiesAndKernelsThatCannotServe) {
  for (const std::string name : {"spiral", "grid:2", "grid:2x", "grid:0x2", "grid:", "double-ring:two", "ring:2"}) {
    ExpectRefused(RunAlone("plan --seq 8 --ranks 2 --strategy " + name), kUsage, "\"" + name + "\"; allowed: ");
  }
  ExpectAttendRefused(good_, "--strategy spiral", kUsage, "--strategy: \"spiral\"; allowed: auto, all, ring");
  ExpectAttendRefused(good_, "--strategy grid:3x5", kRefused, "grid:3x5");
  ExpectAttendRefused(good_, "--kernel abacus", kRefused, "abacus");
  ExpectAttendRefused(good_, "--device gpu", kUsage, "gpu not in {cpu,cuda}");
  ExpectAttendRefused(good_, "--device cuda --trace " + Path("trace.json"), kUsage,
                      "--trace records the steps of CPUs");
}

TEST_F(BadInputTest, OutputsThatCannotBeWritten) {
  ExpectRefused(RunRanks(2, "attend --input " + good_ + " --output " + Path("no/folder/out")), kSystem,
                "does not exist or is not writable");
  ExpectRefused(RunRanks(2, "attend --input " + good_ + " --output " + folder_.string()), kSystem,
                "not a regular file");
}

TEST_F(BadInputTest, StandardOutputThatIsFull) {
  for (const std::string command : {"plan --seq 64 --ranks 2 --strategy ring", "doctor", "--help"}) {
    ExpectRefused(RunShell(TESSERA_TEST_PROGRAM " " + command + " >/dev/full"), kSystem,
                  "cannot write standard output");
  }
}

TEST_F(BadInputTest, FilesThatWouldOverwriteOneAnother) {
  const std::string before = ReadText(good_);
  std::filesystem::create_symlink(good_, Path("symbolic"));
  std::filesystem::create_hard_link(good_, Path("hard"));
  const std::string documents = Write("documents", "0 9");
  const std::string attend = "attend --input " + good_ + " --verify 2 ";
  for (const std::string& alias : {good_, Path("symbolic"), Path("hard"), Path("./good.safetensors")}) {
    for (const std::string flag : {"--output ", "--trace "}) {
      ExpectRefused(RunRanks(2, attend + flag + alias), kBadInput, "is the same file as --input " + good_);
    }
  }
  ExpectRefused(RunRanks(2, attend + "--output " + Path("new") + " --trace " + Path("./new")), kBadInput,
                "is the same file as --output");
  ExpectRefused(RunRanks(2, attend + "--mask documents:" + documents + " --output " + documents), kBadInput,
                "is the same file as --mask");
  EXPECT_EQ(ReadText(good_), before);
  EXPECT_EQ(ReadText(documents), "0 9");
}

TEST_F(BadInputTest, RanksStartedWithDifferentArguments) {
  const std::string program = TESSERA_TEST_PROGRAM " attend --input " + good_ + " --verify 4 --mask ";
  const Outcome outcome = RunShell(TESSERA_TEST_MPIEXEC " -n 2 " + program + "causal : -n 1 " + program + "full");
  ExpectRefused(outcome, kRefused, "the command line");
  EXPECT_THAT(outcome.err, HasSubstr("rank 2"));
  // A rank whose flags do not even parse is found the same way.
  const Outcome usage = RunShell(TESSERA_TEST_MPIEXEC " -n 2 " + program + "causal : -n 1 " + program + "full --blue");
  ExpectRefused(usage, kRefused, "rank 2");
}

}  // namespace
}  // namespace tessera::launcher_test
