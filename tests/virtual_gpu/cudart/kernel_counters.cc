#include "tests/virtual_gpu/cudart/kernel_counters.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>

#include "tests/virtual_gpu/cudart/config.h"
#include "tests/virtual_gpu/cudart/order.h"

namespace tessera::vgpu {
namespace {

struct KernelTotals {
  Counters counters;
  uint32_t threads = 0;  // of a block, the most that was launched
  uint64_t shared_bytes = 0;
};
struct Totals {
  std::mutex mutex;
  std::map<std::string, KernelTotals> kernels;
};
Totals& AllTotals() {
  static Totals* const totals = new Totals;
  return *totals;
}

// One line of JSON per kernel.
void Write() {
  std::FILE* const file = std::fopen(GetConfig().counters_path.c_str(), "w");
  if (file == nullptr) {
    std::fprintf(stderr, "vgpu: VGPU_COUNTERS: cannot write %s\n", GetConfig().counters_path.c_str());
    return;
  }
  HiddenLock hidden(AllTotals().mutex);
  for (const auto& [kernel, totals] : AllTotals().kernels) {
    const Counters& c = totals.counters;
    std::fprintf(file,
                 "{\"kernel\": \"%s\", \"blocks\": %llu, \"threads\": %u, \"block_shared_bytes\": %llu, "
                 "\"instructions\": {",
                 kernel.c_str(), static_cast<unsigned long long>(c.blocks), totals.threads,
                 static_cast<unsigned long long>(totals.shared_bytes));
    for (size_t i = 0; i < c.instructions.size(); ++i) {
      const std::string_view name = Name(static_cast<InstructionClass>(i));
      std::fprintf(file, "%s\"%.*s\": %llu", i == 0 ? "" : ", ", static_cast<int>(name.size()), name.data(),
                   static_cast<unsigned long long>(c.instructions[i]));
    }
    std::fprintf(file, "}");
    const std::pair<const char*, uint64_t> sums[] = {{"tensor_flops", c.tensor_flops},
                                                     {"global_read_bytes", c.global_read_bytes},
                                                     {"global_written_bytes", c.global_written_bytes},
                                                     {"global_requests", c.global_requests},
                                                     {"global_sectors", c.global_sectors},
                                                     {"global_ideal_sectors", c.global_ideal_sectors},
                                                     {"shared_read_bytes", c.shared_read_bytes},
                                                     {"shared_written_bytes", c.shared_written_bytes},
                                                     {"shared_requests", c.shared_requests},
                                                     {"shared_passes", c.shared_passes},
                                                     {"shared_ideal_passes", c.shared_ideal_passes},
                                                     {"bulk_copy_bytes", c.bulk_copy_bytes}};
    for (const auto& [name, value] : sums) {
      std::fprintf(file, ", \"%s\": %llu", name, static_cast<unsigned long long>(value));
    }
    std::fprintf(file, "}\n");
  }
  std::fclose(file);
}

}  // namespace

void CountKernel(const std::string& kernel, const Counters& counters, uint32_t threads, uint64_t shared_bytes) {
  if (GetConfig().counters_path.empty()) return;
  HiddenLock hidden(AllTotals().mutex);
  static const int registered = std::atexit(Write);
  (void)registered;
  KernelTotals& totals = AllTotals().kernels[kernel];
  totals.counters += counters;
  totals.threads = std::max(totals.threads, threads);
  totals.shared_bytes = std::max(totals.shared_bytes, shared_bytes);
}

}  // namespace tessera::vgpu
