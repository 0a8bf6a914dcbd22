// A test with a folder of its own, and what checkpoint directories are made of.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <vector>

#include "runtime/base/safetensors.h"

namespace tessera::latent_test {

class FolderTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto* test = ::testing::UnitTest::GetInstance()->current_test_info();
    folder_ = std::filesystem::path(::testing::TempDir()) /
              ("tessera-" + std::to_string(getpid()) + "-" + test->test_suite_name() + "-" + test->name());
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string Path(const std::string& name) const { return (folder_ / name).string(); }
  void Write(const std::string& name, const std::string& text) const {
    std::ofstream(Path(name), std::ios::binary) << text;
  }
  // A safetensors file whose elements count up from 0 through all of its tensors.
  void WriteTensors(const std::string& name, std::span<const SafetensorsEntry> entries,
                    const SafetensorsMetadata& metadata = {}) const {
    auto writer = SafetensorsWriter::Create(Path(name), entries, 1, metadata);
    ASSERT_TRUE(writer.ok()) << writer.status();
    int64_t next = 0;
    for (const SafetensorsEntry& entry : entries) {
      int64_t elements = 1;
      for (const int64_t extent : entry.shape) elements *= extent;
      std::vector<std::byte> bytes(elements * SizeInBytes(entry.dtype));
      for (int64_t i = 0; i < elements; ++i) {
        StoreFromFloat(bytes.data(), entry.dtype, i, static_cast<float>(next++));
      }
      ASSERT_TRUE(writer->WriteBytes(entry.name, bytes).ok());
    }
    ASSERT_TRUE(writer->Commit().ok());
  }

  std::filesystem::path folder_;
};

}  // namespace tessera::latent_test
