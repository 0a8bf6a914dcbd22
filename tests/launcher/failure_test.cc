// A rank that dies or stalls in the middle of a run ends the job soon, names itself and leaves nothing behind.
#include <gmock/gmock.h>

#include <regex>

#include "tests/launcher/program.h"

namespace tessera::launcher_test {
namespace {

using ::testing::ContainsRegex;
using ::testing::Not;

class FailureTest : public ProgramTest {
 protected:
  // Sends `signal` to the last of three ranks in the middle of a run that would take a minute. A rank that mpirun has
  // told to end may still be at it when mpirun is gone.
  void Strike(const std::string& signal) {
    const std::string input = WriteQkv("in.safetensors", DType::kFloat32, {8192, 8, 64}, {8192, 8, 64}, {8192, 8, 64});
    Write("out.safetensors", "precious");
    outcome_ =
        RunShell(TESSERA_TEST_MPIEXEC " -n 3 " TESSERA_TEST_PROGRAM
                                      " attend --kernel reference --strategy ring --deadline 10 "
                                      "--input " +
                 input + " --output " + Path("out.safetensors") +
                 " & launcher=$!; sleep 3; "
                 "victim=$(tr ' ' '\\n' </proc/$launcher/task/$launcher/children | sort -n | sed '/^$/d' | tail -1); "
                 "struck=$(date +%s%N); kill -" +
                 signal +
                 " $victim; wait $launcher; code=$?; echo ended after $((($(date +%s%N) - struck) / 1000000)) ms; "
                 "left() { test -e /proc/$victim && grep -v zombie /proc/$victim/status | grep -q State; }; "
                 "for attempt in $(seq 20); do left || break; sleep 0.1; done; left && echo left behind >&2; "
                 "exit $code");
  }
  void ExpectCleanEnd() {
    EXPECT_NE(outcome_.exit_code, 0);
    std::smatch ended;
    ASSERT_TRUE(std::regex_search(outcome_.out, ended, std::regex("ended after ([0-9]+) ms"))) << outcome_.out;
    EXPECT_LT(std::stoi(ended[1]), 10000) << "the deadline, counted from the signal";
    EXPECT_THAT(outcome_.err, ContainsRegex("rank 2.*plan step [0-9]+"));
    EXPECT_THAT(outcome_.err, Not(::testing::HasSubstr("left behind")));
    EXPECT_EQ(ReadText(Path("out.safetensors")), "precious");
    EXPECT_THAT(FilesInFolder(), ::testing::ElementsAre("in.safetensors", "out.safetensors"));
  }
  Outcome outcome_;
};

TEST_F(FailureTest, AKilledRankEndsTheJob) {
  Strike("KILL");
  ExpectCleanEnd();
}

TEST_F(FailureTest, AStoppedRankEndsTheJob) {
  Strike("STOP");
  ExpectCleanEnd();
}

TEST_F(FailureTest, AJobThatEndsWhileWritingLeavesNoTemporary) {
  // Little to compute and a hundred megabytes to write.
  const std::string input =
      WriteQkv("in.safetensors", DType::kFloat32, {131072, 1, 1}, {131072, 1, 1}, {131072, 1, 256});
  for (const char* const victim : {"head", "tail"}) {
    Write("out.safetensors", "precious");
    const Outcome outcome =
        RunShell(TESSERA_TEST_MPIEXEC " -n 3 " TESSERA_TEST_PROGRAM
                                      " attend --mask window:1 --strategy ring --deadline 3 --input " +
                 input + " --output " + Path("out.safetensors") + " & launcher=$!; until ls " + folder_.string() +
                 " | grep -q tmp-; do kill -0 $launcher || break; done; "
                 "kill -KILL $(tr ' ' '\n' </proc/$launcher/task/$launcher/children | sort -n | sed '/^$/d' | " +
                 victim + " -n 1); wait $launcher");
    if (outcome.exit_code != 0) {  // 0: it had written everything before the signal came
      EXPECT_EQ(outcome.exit_code, 137) << outcome.out << outcome.err;
      EXPECT_TRUE(ReadText(Path("out.safetensors")) == "precious");
    }
    EXPECT_THAT(FilesInFolder(), ::testing::ElementsAre("in.safetensors", "out.safetensors")) << outcome.err;
  }
}

// Work of one rank that takes longer than the deadline, while the others wait for it, is no failure.
TEST_F(FailureTest, SlowLocalWorkIsNoStall) {
  const std::string input = WriteQkv("in.safetensors", DType::kFloat32, {9, 1, 4}, {9, 1, 4}, {9, 1, 4});
  // mpirun hands its standard input to rank 0 alone; the others find an empty list of boundaries at once.
  const Outcome attend = RunShell("(sleep 3; echo 0 9) | " TESSERA_TEST_MPIEXEC " -n 2 " TESSERA_TEST_PROGRAM
                                  " attend --deadline 1 --verify 2 --mask documents:/dev/stdin --input " +
                                  input);
  EXPECT_EQ(attend.exit_code, 3) << attend.err;
  EXPECT_THAT(attend.err, ::testing::HasSubstr("rank 1, checking the input: /dev/stdin"));
  const Outcome plan = RunShell("(sleep 3; echo 0 9) | TESSERA_DEADLINE_SECONDS=1 " TESSERA_TEST_MPIEXEC
                                " -n 2 " TESSERA_TEST_PROGRAM " plan --seq 9 --ranks 2 --mask documents:/dev/stdin");
  EXPECT_EQ(plan.exit_code, 0) << plan.err;
  EXPECT_THAT(plan.out, ::testing::HasSubstr("verified"));
}

}  // namespace
}  // namespace tessera::launcher_test
