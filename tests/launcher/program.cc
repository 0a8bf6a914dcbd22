#include "tests/launcher/program.h"

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <sstream>

#include "runtime/base/counter_random.h"
#include "runtime/base/safetensors.h"

namespace tessera::launcher_test {

std::string ReadText(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

Outcome RunShell(const std::string& command) {
  const std::string base = ::testing::TempDir() + "/tessera-output-" + std::to_string(getpid());
  const std::string out = base + ".out", err = base + ".err";
  const int status = std::system(("(" + command + ") >" + out + " 2>" + err + " </dev/null").c_str());
  Outcome outcome{WIFEXITED(status) ? WEXITSTATUS(status) : -1, ReadText(out), ReadText(err)};
  std::filesystem::remove(out);
  std::filesystem::remove(err);
  return outcome;
}

Outcome RunRanks(int ranks, const std::string& arguments) {
  return RunShell(std::string(TESSERA_TEST_MPIEXEC) + " -n " + std::to_string(ranks) + " " + TESSERA_TEST_PROGRAM +
                  " " + arguments);
}

Outcome RunAlone(const std::string& arguments) {
  return RunShell(std::string(TESSERA_TEST_PROGRAM) + " " + arguments);
}

void ProgramTest::SetUp() {
  folder_ =
      std::filesystem::path(::testing::TempDir()) /
      ("tessera-" + std::to_string(getpid()) + "-" + ::testing::UnitTest::GetInstance()->current_test_info()->name());
  std::filesystem::create_directories(folder_);
}

void ProgramTest::TearDown() {
  std::filesystem::remove_all(folder_);
}

std::string ProgramTest::Write(const std::string& name, const std::string& bytes) const {
  std::ofstream(Path(name), std::ios::binary) << bytes;
  return Path(name);
}

std::string ProgramTest::WriteQkv(const std::string& name, DType dtype, const std::vector<int64_t>& query,
                                  const std::vector<int64_t>& key, const std::vector<int64_t>& value) const {
  const std::vector<SafetensorsEntry> entries = {{"q", dtype, query}, {"k", dtype, key}, {"v", dtype, value}};
  StatusOr<SafetensorsWriter> writer = SafetensorsWriter::Create(Path(name), entries, 1);
  EXPECT_TRUE(writer.ok()) << writer.status();
  uint8_t tensor = 0;
  for (const SafetensorsEntry& entry : entries) {
    const int heads = static_cast<int>(entry.shape[1]), width = static_cast<int>(entry.shape[2]);
    std::vector<std::byte> bytes(entry.shape[0] * heads * width * SizeInBytes(dtype));
    const TensorView rows = TensorView::Dense(bytes.data(), dtype, entry.shape[0], heads, width);
    const std::vector<Segment> all = {{0, entry.shape[0], 1}};
    FillNormal(7, tensor++, all, rows);
    EXPECT_TRUE(writer->WriteRows(entry.name, all, rows).ok());
  }
  EXPECT_TRUE(writer->Commit().ok());
  return Path(name);
}

std::vector<std::string> ProgramTest::FilesInFolder() const {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder_)) names.push_back(entry.path().filename());
  std::ranges::sort(names);
  return names;
}

}  // namespace tessera::launcher_test
