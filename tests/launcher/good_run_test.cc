// Runs that must succeed, and the files and tables they leave.
#include <gmock/gmock.h>

#include <cmath>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "kernels/reference/reference.h"
#include "partition/mask.h"
#include "runtime/base/safetensors.h"
#include "tests/launcher/program.h"

namespace tessera::launcher_test {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

class GoodRunTest : public ProgramTest {};

// out and lse of `output` against fp64, computed here from the input file.
void ExpectExact(const std::string& input, const std::string& output, const Mask& mask) {
  const auto source = SafetensorsFile::Open(input);
  const auto result = SafetensorsFile::Open(output);
  ASSERT_TRUE(source.ok() && result.ok()) << source.status() << result.status();
  const auto q = source->View("q"), k = source->View("k"), v = source->View("v");
  const auto out = result->View("out"), lse = result->View("lse");
  ASSERT_TRUE(q.ok() && k.ok() && v.ok() && out.ok() && lse.ok()) << out.status() << lse.status();
  ASSERT_EQ(out->dtype, q->dtype);
  ASSERT_EQ(out->rows, q->rows);
  ASSERT_EQ(out->heads, q->heads);
  ASSERT_EQ(out->width, v->width);
  ASSERT_EQ(lse->heads, q->heads);
  std::vector<int64_t> rows(q->rows);
  for (int64_t i = 0; i < q->rows; ++i) rows[i] = i;
  ScoreArgs score;
  score.scale = 1 / std::sqrt(static_cast<float>(q->width));
  const auto exact = reference::Attention(*q, *k, *v, mask.bands(), score, {}, rows);
  ASSERT_TRUE(exact.ok()) << exact.status();
  for (int64_t i = 0; i < out->elements(); ++i) {
    ASSERT_NEAR(LoadAsFloat(out->data, out->dtype, i), exact->output[i], 2e-5) << i;
  }
  for (int64_t i = 0; i < lse->elements(); ++i) {
    ASSERT_NEAR(LoadAsFloat(lse->data, DType::kFloat32, i), exact->lse[i], 1e-5 * (1 + std::abs(exact->lse[i]))) << i;
  }
}

TEST_F(GoodRunTest, AttendWritesTheResultForEveryRankCount) {
  const std::string input = WriteQkv("in.safetensors", DType::kFloat32, {37, 4, 6}, {37, 2, 6}, {37, 2, 5});
  const auto mask = Mask::Causal(37, 37);
  ASSERT_TRUE(mask.ok());
  for (int ranks : {1, 2, 3, 4}) {
    const Outcome run = RunRanks(ranks, "attend --input " + input + " --output " + Path("out.safetensors"));
    ASSERT_EQ(run.exit_code, 0) << run.err;
    EXPECT_EQ(run.err, "");
    ExpectExact(input, Path("out.safetensors"), *mask);
    EXPECT_THAT(FilesInFolder(), ElementsAre("in.safetensors", "out.safetensors"));
  }
}

TEST_F(GoodRunTest, AttendServesDocumentsOfLengthZeroAndMoreRanksThanTokens) {
  const std::string input = WriteQkv("in.safetensors", DType::kFloat32, {3, 1, 4}, {3, 1, 4}, {3, 1, 4});
  const std::string documents = Write("documents.txt", "0 1 1\n3\n");
  const std::vector<int64_t> boundaries = {0, 1, 1, 3};
  const auto mask = Mask::Documents(3, boundaries, SliceType::kCausal);
  ASSERT_TRUE(mask.ok());
  const Outcome run = RunRanks(4, "attend --input " + input + " --output " + Path("out.safetensors") +
                                      " --verify 3 --mask documents:" + documents);
  ASSERT_EQ(run.exit_code, 0) << run.out << run.err;
  ExpectExact(input, Path("out.safetensors"), *mask);
}

TEST_F(GoodRunTest, EveryStrategyIsExactOnRealTensors) {
  const Outcome run = RunRanks(4, "attend --input " TESSERA_TEST_SLICE " --strategy all --verify 16");
  EXPECT_EQ(run.exit_code, 0) << run.out << run.err;
  EXPECT_THAT(run.out, Not(HasSubstr("WRONG")));
  for (const char* strategy : {"ring", "zigzag", "allgather", "ulysses", "grid", "double-ring", "tree"}) {
    EXPECT_THAT(run.out, HasSubstr(strategy));
  }
}

TEST_F(GoodRunTest, TracesAreChromeTraceDocumentsOfAllRanks) {
  const std::string input = WriteQkv("in.safetensors", DType::kBFloat16, {64, 2, 8}, {64, 2, 8}, {64, 2, 8});
  const Outcome run =
      RunRanks(3, "attend --input " + input + " --verify 4 --strategy ring --trace " + Path("run.trace.json"));
  ASSERT_EQ(run.exit_code, 0) << run.err;
  const auto trace = nlohmann::json::parse(ReadText(Path("run.trace.json")), nullptr, false);
  ASSERT_TRUE(trace.is_object());
  std::set<int> processes;
  for (const auto& event : trace["traceEvents"]) processes.insert(event["pid"].get<int>());
  EXPECT_EQ(processes.size(), 3u);
}

TEST_F(GoodRunTest, BenchWritesOneRecordPerRow) {
  const Outcome run = RunRanks(3,
                               "bench scaling --seq 300 --heads 4 --kv-heads 2 --dim 16 --v-dim 8 --dtype fp32 "
                               "--strategy all --repeat 1 --every-rank-count --json " +
                                   Path("bench.jsonl"));
  EXPECT_EQ(run.exit_code, 0) << run.out << run.err;
  std::ifstream lines(Path("bench.jsonl"));
  std::set<int> ranks;
  for (std::string line; std::getline(lines, line);) {
    const auto record = nlohmann::json::parse(line, nullptr, false);
    ASSERT_TRUE(record.is_object()) << line;
    EXPECT_EQ(record["schema"], "tessera-bench-1");
    EXPECT_EQ(record["bytes_counted"], record["bytes_predicted"]) << line;
    EXPECT_EQ(record["ok"], true) << line;
    ranks.insert(record["ranks"].get<int>());
  }
  EXPECT_THAT(ranks, ElementsAre(1, 2, 3));
}

TEST_F(GoodRunTest, BenchMeasuresTheBackwardPassInRowsOfItsOwn) {
  for (const std::string dtype : {"bf16", "fp64"}) {
    const Outcome run = RunRanks(3,
                                 "bench scaling --seq 200 --heads 4 --kv-heads 2 --dim 16 --v-dim 8 --strategy all "
                                 "--repeat 1 --ranks 1,3 --backward --dtype " +
                                     dtype + " --json " + Path("b.jsonl"));
    EXPECT_EQ(run.exit_code, 0) << run.out << run.err;
    std::ifstream lines(Path("b.jsonl"));
    std::map<std::string, int> rows;
    for (std::string line; std::getline(lines, line);) {
      const auto record = nlohmann::json::parse(line, nullptr, false);
      ASSERT_TRUE(record.is_object()) << line;
      EXPECT_EQ(record["bytes_counted"], record["bytes_predicted"]) << line;
      EXPECT_EQ(record["ok"], true) << line;
      EXPECT_LT(record["error"]["relative"], dtype == "fp64" ? 1e-12 : 1e-2) << line;
      ++rows[record["pass"].get<std::string>()];
    }
    EXPECT_GT(rows["forward"], 5);
    EXPECT_EQ(rows["forward"], rows["backward"]);
    EXPECT_THAT(run.out, HasSubstr("zigzag, backward"));
  }
}

TEST_F(GoodRunTest, BenchReplacesRecordsOnlyWithRecords) {
  const std::string records = Write("bench.jsonl", "precious");
  const std::string bench = "bench scaling --seq 64 --dtype fp32 --repeat 1 --json " + records;
  EXPECT_EQ(RunRanks(2, bench + " --kernel abacus").exit_code, 4);
  EXPECT_EQ(RunRanks(2, bench + " --strategy grid:3x5").exit_code, 4);
  EXPECT_EQ(RunRanks(2, bench + " --ranks 3").exit_code, 3);
  EXPECT_EQ(ReadText(records), "precious");
  EXPECT_EQ(RunRanks(2, bench + " --strategy ring").exit_code, 0);
  EXPECT_THAT(ReadText(records), HasSubstr("tessera-bench-1"));
  EXPECT_THAT(FilesInFolder(), ElementsAre("bench.jsonl"));
}

TEST_F(GoodRunTest, RowsThatWereMeasuredAreShownWhenTheRunFails) {
  // A trace or record file whose folder goes away is found out after the row it belongs to.
  std::filesystem::create_directory(Path("gone"));
  const Outcome run = RunShell("(sleep 2; rm -r " + Path("gone") +
                               ") & " TESSERA_TEST_MPIEXEC " -n 2 " TESSERA_TEST_PROGRAM
                               " bench scaling --seq 2560 --dtype fp32 --verify 4 --heads 8 "
                               "--kernel reference --repeat 1 --strategy ring --json " +
                               Path("gone/bench.jsonl"));
  EXPECT_EQ(run.exit_code, 3) << run.err;
  EXPECT_THAT(run.err, HasSubstr("cannot write " + Path("gone/bench.jsonl")));
  EXPECT_THAT(run.out, HasSubstr("peak of run"));
  EXPECT_THAT(run.out, HasSubstr("reference  ok"));
}

TEST_F(GoodRunTest, PlanNeedsNoRanks) {
  const Outcome small = RunAlone("plan --seq 64 --ranks 4 --strategy zigzag --timeline");
  EXPECT_EQ(small.exit_code, 0) << small.err;
  EXPECT_THAT(small.out, HasSubstr("every pair once"));
  EXPECT_THAT(small.out, HasSubstr("predicted"));
  const Outcome json = RunAlone("plan --seq 64 --ranks 2 --strategy ring --json");
  EXPECT_EQ(nlohmann::json::parse(json.out, nullptr, false)["schema"], "tessera-plan-1");
  const Outcome huge = RunAlone("plan --seq 1048576 --heads 8 --ranks 65536 --strategy ring");
  EXPECT_EQ(huge.exit_code, 0) << huge.err;
  EXPECT_THAT(huge.out, HasSubstr("closed-form estimate"));
}

TEST_F(GoodRunTest, DoctorListsKernelsAndVariables) {
  const Outcome run = RunAlone("doctor");
  EXPECT_EQ(run.exit_code, 0) << run.err;
  EXPECT_THAT(run.out, HasSubstr("reference"));
  EXPECT_THAT(run.out, HasSubstr("TESSERA_DEADLINE_SECONDS"));
}

TEST_F(GoodRunTest, RanksAreThoseThatWereStarted) {
  const std::string none = "env -u SLURM_STEP_NUM_TASKS -u SLURM_STEP_TASKS_PER_NODE ";
  EXPECT_THAT(RunShell(none + "SLURM_NTASKS=8 SLURM_PROCID=0 " TESSERA_TEST_PROGRAM " doctor").out,
              HasSubstr("1, 1 of them on this node"));
  const Outcome uneven =
      RunShell(TESSERA_TEST_MPIEXEC " -n 2 env OMPI_COMM_WORLD_LOCAL_SIZE=2 " TESSERA_TEST_PROGRAM
                                    " bench scaling --seq 96 --dtype fp32 --strategy double-ring "
                                    "--repeat 1 : -n 2 env OMPI_COMM_WORLD_LOCAL_SIZE=1 " TESSERA_TEST_PROGRAM
                                    " bench scaling --seq 96 --dtype fp32 --strategy double-ring "
                                    "--repeat 1");
  EXPECT_EQ(uneven.exit_code, 0) << uneven.out << uneven.err;
  const std::string attend = " attend --strategy auto --verify 4 --input " +
                             WriteQkv("in.safetensors", DType::kFloat32, {64, 2, 8}, {64, 2, 8}, {64, 2, 8});
  const Outcome automatic =
      RunShell(TESSERA_TEST_MPIEXEC " -n 2 env OMPI_COMM_WORLD_LOCAL_SIZE=2 " TESSERA_TEST_PROGRAM + attend +
               " : -n 1 env OMPI_COMM_WORLD_LOCAL_SIZE=1 " TESSERA_TEST_PROGRAM + attend);
  EXPECT_EQ(automatic.exit_code, 0) << automatic.out << automatic.err;
  // One rank more than a node holds, and fewer: neither may refuse.
  const Outcome fewer = RunShell(
      TESSERA_TEST_MPIEXEC " -n 4 env OMPI_COMM_WORLD_LOCAL_SIZE=2 " TESSERA_TEST_PROGRAM
                           " bench scaling --seq 96 --dtype fp32 --strategy double-ring --repeat 1 --ranks 1,3,4");
  EXPECT_EQ(fewer.exit_code, 0) << fewer.out << fewer.err;
  EXPECT_THAT(fewer.out, Not(HasSubstr("do not fill nodes")));
}

TEST_F(GoodRunTest, HelpHasExamplesAndExitCodes) {
  EXPECT_THAT(RunAlone("--help").out, HasSubstr("Exit codes: 0 done and correct"));
  for (const char* command : {"attend", "bench scaling", "plan", "doctor"}) {
    const Outcome help = RunAlone(std::string(command) + " --help");
    EXPECT_EQ(help.exit_code, 0) << command;
    EXPECT_THAT(help.out, HasSubstr("Examples:")) << command;
  }
}

}  // namespace
}  // namespace tessera::launcher_test
