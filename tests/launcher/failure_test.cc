// A rank that dies or stalls in the middle of a run ends the job soon, names itself and leaves nothing behind.
#include <gmock/gmock.h>

#include <chrono>

#include "tests/launcher/program.h"

namespace tessera::launcher_test {
namespace {

using ::testing::ContainsRegex;
using ::testing::Not;

class FailureTest : public ProgramTest {
 protected:
  // Sends `signal` to the last of three ranks in the middle of a run that would take a minute.
  void Strike(const std::string& signal) {
    const std::string input = WriteQkv("in.safetensors", DType::kFloat32, {8192, 8, 64}, {8192, 8, 64}, {8192, 8, 64});
    Write("out.safetensors", "precious");
    const auto start = std::chrono::steady_clock::now();
    outcome_ = RunShell(
        TESSERA_TEST_MPIEXEC " -n 3 " TESSERA_TEST_PROGRAM
                             " attend --kernel reference --strategy ring --deadline 3 "
                             "--input " +
        input + " --output " + Path("out.safetensors") +
        " & launcher=$!; sleep 3; "
        "victim=$(tr ' ' '\\n' </proc/$launcher/task/$launcher/children | sort -n | sed '/^$/d' | tail -1); "
        "kill -" +
        signal +
        " $victim; wait $launcher; code=$?; "
        "test -e /proc/$victim && grep -v zombie /proc/$victim/status | grep -q State && echo left behind >&2; "
        "exit $code");
    seconds_ = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
  void ExpectCleanEnd() {
    EXPECT_NE(outcome_.exit_code, 0);
    EXPECT_LT(seconds_, 15) << "preparation, three seconds of deadline, and the end of the job";
    EXPECT_THAT(outcome_.err, ContainsRegex("rank 2.*plan step [0-9]+"));
    EXPECT_THAT(outcome_.err, Not(::testing::HasSubstr("left behind")));
    EXPECT_EQ(ReadText(Path("out.safetensors")), "precious");
    EXPECT_THAT(FilesInFolder(), ::testing::ElementsAre("in.safetensors", "out.safetensors"));
  }
  Outcome outcome_;
  double seconds_ = 0;
};

TEST_F(FailureTest, AKilledRankEndsTheJob) {
  Strike("KILL");
  ExpectCleanEnd();
}

TEST_F(FailureTest, AStoppedRankEndsTheJob) {
  Strike("STOP");
  ExpectCleanEnd();
}

}  // namespace
}  // namespace tessera::launcher_test
