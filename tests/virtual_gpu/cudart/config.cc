#include "tests/virtual_gpu/cudart/config.h"

#include <unistd.h>

#include <charconv>
#include <cstdlib>
#include <cstring>

namespace tessera::vgpu {
namespace {

constexpr Architecture kArchitectures[] = {
    {7, 5, 72, 65536, 65536, 1024, 16, 6 << 20},        // Turing
    {8, 0, 108, 167936, 166912, 2048, 32, 40 << 20},    // A100
    {8, 6, 84, 102400, 101376, 1536, 16, 6 << 20},      // A40
    {8, 9, 142, 102400, 101376, 1536, 24, 96 << 20},    // L40
    {9, 0, 132, 233472, 232448, 2048, 32, 50 << 20},    // H100
    {12, 0, 188, 102400, 101376, 1536, 32, 128 << 20},  // RTX PRO 6000
};

bool ParseNumber(const char* text, int64_t least, int64_t* value) {
  const char* end = text + std::strlen(text);
  const auto [stop, error] = std::from_chars(text, end, *value);
  return error == std::errc() && stop == end && *value >= least;
}

bool ParseArchitecture(const char* text, Architecture* architecture) {
  for (const Architecture& known : kArchitectures) {
    if (text == std::to_string(known.major) + "." + std::to_string(known.minor)) {
      *architecture = known;
      return true;
    }
  }
  return false;
}

Config Read() {
  Config config;
  ParseArchitecture("9.0", &config.architecture);
  const auto refuse = [&](const char* name, const char* text, const char* allowed) {
    config.error = std::string(name) + " is \"" + text + "\"; allowed: " + allowed;
  };
  if (const char* text = std::getenv("VGPU_DEVICES")) {
    int64_t count = 0;
    if (std::strcmp(text, "none") == 0) {
      config.driver = false;
    } else if (!ParseNumber(text, 0, &count) || count > 64) {
      refuse("VGPU_DEVICES", text, "none, or a number from 0 to 64");
    }
    config.devices = static_cast<int>(count);
  }
  if (const char* text = std::getenv("VGPU_ARCH"); text && !ParseArchitecture(text, &config.architecture)) {
    refuse("VGPU_ARCH", text, "7.5, 8.0, 8.6, 8.9, 9.0, 12.0");
  }
  if (const char* text = std::getenv("VGPU_MEMORY_BYTES"); text && !ParseNumber(text, 1, &config.memory_bytes)) {
    refuse("VGPU_MEMORY_BYTES", text, "a positive number");
  }
  if (const char* text = std::getenv("VGPU_COUNTERS")) {
    config.counters_path = text;
    if (const size_t at = config.counters_path.find("%p"); at != std::string::npos) {
      config.counters_path.replace(at, 2, std::to_string(getpid()));
    }
  }
  return config;
}

}  // namespace

const Config& GetConfig() {
  static const Config* const config = new Config(Read());
  return *config;
}

}  // namespace tessera::vgpu
