// Runs the tessera program as a user would and looks at what it said, how it ended and what it left behind.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "runtime/base/dtype.h"

namespace tessera::launcher_test {

struct Outcome {
  int exit_code = -1;
  std::string out;
  std::string err;
};

// A shell command line.
Outcome RunShell(const std::string& command);
// `mpirun -n ranks tessera arguments`.
Outcome RunRanks(int ranks, const std::string& arguments);
// `tessera arguments` alone.
Outcome RunAlone(const std::string& arguments);

std::string ReadText(const std::string& path);

// A test with a folder of its own.
class ProgramTest : public ::testing::Test {
 protected:
  void SetUp() override;
  void TearDown() override;

  std::string Path(const std::string& name) const { return (folder_ / name).string(); }
  std::string Write(const std::string& name, const std::string& bytes) const;
  // q, k and v of the given shapes, standard normals.
  std::string WriteQkv(const std::string& name, DType dtype, const std::vector<int64_t>& query,
                       const std::vector<int64_t>& key, const std::vector<int64_t>& value) const;
  std::vector<std::string> FilesInFolder() const;

  std::filesystem::path folder_;
};

}  // namespace tessera::launcher_test
