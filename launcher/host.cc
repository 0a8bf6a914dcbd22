#include "launcher/host.h"

#include <malloc.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <sstream>

namespace tessera::launcher {
namespace {

// The rest of the first line of `path` that begins with `key`.
std::string Field(const char* path, const std::string& key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (line.compare(0, key.size(), key) != 0) continue;
    const size_t colon = line.find(':');
    const size_t begin = line.find_first_not_of(" \t", colon + 1);
    return begin == std::string::npos ? "" : line.substr(begin);
  }
  return "";
}

int64_t KibibytesField(const char* path, const std::string& key) {
  return std::strtoll(Field(path, key).c_str(), nullptr, 10) * 1024;
}

}  // namespace

int UsableCores() {
  cpu_set_t cores;
  if (sched_getaffinity(0, sizeof cores, &cores) == 0) return std::max(1, CPU_COUNT(&cores));
  return std::max(1, static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN)));
}

int64_t TotalMemoryBytes() {
  return KibibytesField("/proc/meminfo", "MemTotal");
}
int64_t AvailableMemoryBytes() {
  return KibibytesField("/proc/meminfo", "MemAvailable");
}

std::string CpuModel() {
  const std::string name = Field("/proc/cpuinfo", "model name");
  return name.empty() ? "unknown processor" : name;
}

std::vector<std::string> CpuFeatures() {
  std::istringstream flags(Field("/proc/cpuinfo", "flags"));
  const std::vector<std::string> wanted = {"avx2",        "fma",      "f16c",     "avx512f",
                                           "avx512_bf16", "amx_bf16", "amx_tile", "avx512_fp16"};
  std::vector<std::string> found;
  for (std::string flag; flags >> flag;) {
    if (std::find(wanted.begin(), wanted.end(), flag) != wanted.end()) found.push_back(flag);
  }
  return found;
}

std::string HostName() {
  char name[256] = {};
  return gethostname(name, sizeof name - 1) == 0 ? name : "unknown";
}

int64_t ResidentBytes() {
  return KibibytesField("/proc/self/status", "VmRSS");
}
int64_t PeakResidentBytes() {
  return KibibytesField("/proc/self/status", "VmHWM");
}

bool ResetPeakResident() {
  malloc_trim(0);
  std::ofstream file("/proc/self/clear_refs");
  file << 5 << std::flush;  // proc(5): resets the peak resident set size
  return file.good();
}

int DefaultThreads(int local_ranks) {
  return std::max(1, UsableCores() / std::max(1, local_ranks));
}

double PlausiblePeakFlops(int cores, bool half_precision) {
  // Two 512-bit fused multiply-adds of fp32 per cycle are 64 flops; one AMX tile product of bf16 is 1024.
  return cores * 6e9 * (half_precision ? 1024 : 64);
}

}  // namespace tessera::launcher
