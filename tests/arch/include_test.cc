// Holds the source tree against docs/architecture.md: who may include whom, and where outside libraries may appear.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <string>
#include <vector>

namespace {

namespace fs = std::filesystem;
using Set = std::set<std::string>;

// A layer is a folder; each may include itself and these.
const std::map<std::string, Set> kMayInclude = {
    {"runtime/base", {}},
    {"runtime/device", {"runtime/base"}},
    {"partition", {"runtime/base"}},
    {"kernels", {"runtime/base"}},
    {"collectives", {"runtime/base", "runtime/device"}},
    {"runtime/engine", {"runtime/base", "runtime/device", "partition", "kernels", "collectives"}},
    {"runtime/latent", {"runtime/base", "runtime/device", "runtime/engine", "partition", "kernels", "collectives"}},
    {"runtime/capi", {"runtime/base", "runtime/device", "runtime/engine", "partition", "kernels", "collectives"}},
    {"launcher",
     {"runtime/base", "runtime/device", "runtime/engine", "runtime/latent", "partition", "kernels", "collectives"}},
};

std::string LayerOf(const std::string& path) {
  std::string layer;
  for (const auto& [name, allowed] : kMayInclude) {
    if (path.rfind(name + "/", 0) == 0 && name.size() > layer.size()) layer = name;
  }
  return layer;
}

struct Source {
  std::string path;  // relative to the repository
  std::string text;
  std::vector<std::string> includes;
};

const Set kExtensions = {".h", ".cc", ".cuh", ".cu"};

std::vector<Source> Sources() {
  const fs::path root = TESSERA_SOURCE_DIR;
  const std::regex include(R"re(^[ \t]*#[ \t]*include[ \t]*[<"]([^>"]+)[>"])re", std::regex::multiline);
  std::vector<Source> sources;
  for (const auto& [layer, allowed] : kMayInclude) {
    for (const auto& entry : fs::recursive_directory_iterator(root / layer)) {
      const std::string extension = entry.path().extension();
      const std::string path = fs::relative(entry.path(), root);
      if (!kExtensions.count(extension) || LayerOf(path) != layer) continue;
      std::ifstream file(entry.path());
      Source source{path, {std::istreambuf_iterator<char>(file), {}}, {}};
      for (std::sregex_iterator it(source.text.begin(), source.text.end(), include), end; it != end; ++it) {
        source.includes.push_back((*it)[1]);
      }
      sources.push_back(std::move(source));
    }
  }
  return sources;
}

TEST(Architecture, LayersIncludeOnlyWhatTheyMay) {
  int checked = 0;
  for (const Source& source : Sources()) {
    const std::string layer = LayerOf(source.path);
    for (const std::string& include : source.includes) {
      const std::string target = LayerOf(include);
      if (target.empty()) continue;
      ++checked;
      EXPECT_TRUE(target == layer || kMayInclude.at(layer).count(target)) << source.path << " includes " << include;
    }
  }
  EXPECT_GT(checked, 100) << "the test no longer finds the sources";
}

TEST(Architecture, ThePyTorchDoorKnowsOnlyTheCInterface) {
  const std::regex include(R"re(^[ \t]*#[ \t]*include[ \t]*[<"]([^>"]+)[>"])re", std::regex::multiline);
  int checked = 0;
  for (const auto& entry : fs::directory_iterator(fs::path(TESSERA_SOURCE_DIR) / "runtime/torch")) {
    if (entry.path().extension() != ".h" && entry.path().extension() != ".cc") continue;
    std::ifstream file(entry.path());
    const std::string text{std::istreambuf_iterator<char>(file), {}};
    for (std::sregex_iterator it(text.begin(), text.end(), include), end; it != end; ++it) {
      EXPECT_EQ(LayerOf((*it)[1]), "") << entry.path() << " includes " << (*it)[1];
      ++checked;
    }
  }
  EXPECT_GT(checked, 20) << "the test no longer finds the sources";
}

TEST(Architecture, OutsideHeadersStayInTheirFolder) {
  const std::map<std::string, std::string> home = {
      {"mpi.h", "collectives/mpi/"},
      {"nccl.h", "collectives/nccl/"},
      {"cuda_runtime.h", "runtime/device/cuda/"},  // nvcc includes it in every .cu by itself
      {"nvtx3/nvToolsExt.h", "runtime/device/cuda/"},
      {"cuda_bf16.h", "kernels/cuda/"},
      {"cuda_fp16.h", "kernels/cuda/"},
      {"cublas_v2.h", "kernels/cuda/"},
      {"CLI/CLI.hpp", "launcher/"},
      {"omp.h", "kernels/"}};
  for (const Source& source : Sources()) {
    for (const std::string& include : source.includes) {
      const auto it = home.find(include);
      if (it != home.end()) {
        EXPECT_EQ(source.path.rfind(it->second, 0), 0u) << source.path << " includes <" << include << ">";
      }
      if (include.rfind("Eigen/", 0) == 0) {
        EXPECT_TRUE(source.path.rfind("runtime/latent/", 0) == 0 && source.path.ends_with(".cc")) << source.path;
      }
      if (include.rfind("hwy/", 0) == 0) {
        EXPECT_EQ(source.path.rfind("kernels/cpu/", 0), 0u) << source.path;
      }
      if (include.rfind("oneapi/", 0) == 0) {
        EXPECT_EQ(source.path, "kernels/cpu/linear.cc");
      }
    }
  }
}

TEST(Architecture, TheLibraryNeitherEndsTheProcessNorReadsTheEnvironment) {
  const std::regex ends(R"((^|[^\w.])(std::)?(_?exit|abort|quick_exit|terminate)\()");
  const std::regex environment(R"((^|\W)(secure_)?getenv\()");
  const std::regex throws(R"((^|\W)throw\s+\w)");
  // The MPI session belongs to mains: it is the one place that may end a job.
  const Set may_end = {"collectives/mpi/session.cc", "collectives/mpi/process.cc"};
  for (const Source& source : Sources()) {
    const std::string code = std::regex_replace(source.text, std::regex(R"(//[^\n]*)"), "");
    const bool launcher = source.path.rfind("launcher/", 0) == 0;
    if (!launcher && !may_end.count(source.path)) {
      EXPECT_FALSE(std::regex_search(code, ends)) << source.path;
    }
    if (source.path != "runtime/base/environment.cc") {
      EXPECT_FALSE(std::regex_search(code, environment)) << source.path;
    }
    // Flag parsers report contradictions by throwing into the library that calls them.
    if (!launcher) {
      EXPECT_FALSE(std::regex_search(code, throws)) << source.path;
    }
  }
}

TEST(Architecture, FilesStaySmallEnoughToReview) {
  for (const Source& source : Sources()) {
    const auto lines = std::count(source.text.begin(), source.text.end(), '\n');
    EXPECT_LE(lines, 450) << source.path;
  }
}

}  // namespace
