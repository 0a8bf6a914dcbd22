// The bundled model and its text, for tests that run the program on them or on altered copies.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "tests/launcher/program.h"

namespace tessera::launcher_test {

inline constexpr int kUsage = 2, kBadInput = 3, kRefused = 4, kSystem = 6;  // exit codes: launcher/exit_code.h
inline const std::string kModel = TESSERA_TEST_SOURCE "/launcher/data/kjv-mla";
inline const std::string kText = TESSERA_TEST_SOURCE "/launcher/data/kjv-heldout-64k.txt";

class BundledModelTest : public ProgramTest {
 protected:
  // A copy of the model's config and weights in the test's folder.
  std::string CopyModel(const std::string& name) const {
    std::filesystem::create_directories(Path(name));
    for (const char* file : {"config.json", "model.safetensors"}) {
      std::filesystem::copy_file(kModel + "/" + file, Path(name) + "/" + file);
    }
    return Path(name);
  }
  // The bundled config with some fields replaced, as the config of a copy.
  void WriteConfig(const std::string& model, const nlohmann::json& fields) const {
    nlohmann::json config = nlohmann::json::parse(ReadText(kModel + "/config.json"));
    config.update(fields);
    std::ofstream(model + "/config.json") << config.dump();
  }
};

}  // namespace tessera::launcher_test
