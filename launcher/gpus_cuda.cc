#include <cstdio>
#include <string>

#include "absl/strings/str_join.h"
#include "collectives/nccl/communicator.h"
#include "launcher/gpus.h"
#include "launcher/table.h"
#include "runtime/device/cuda/device.h"

namespace tessera::launcher {
namespace {

int Finding(const Status& status) {
  std::printf("  finding: %s\n", std::string(status.message()).c_str());
  return 1;
}

}  // namespace

int PrintGpus(int local_ranks) {
  std::printf("\nGPUs\n");
  std::printf("  built for  %s\n", absl::StrJoin(BuiltArchitectures(), ", ").c_str());
  int findings = 0;
  if (const StatusOr<std::string> version = NcclVersion(); version.ok()) {
    std::printf("  NCCL       %s\n", version->c_str());
  } else {
    findings += Finding(version.status());
  }
  const StatusOr<int> count = CudaDevice::Count();
  if (!count.ok()) return findings + Finding(count.status());
  for (int i = 0; i < *count; ++i) {
    const StatusOr<CudaDevice> device = CudaDevice::Open(i);
    if (!device.ok()) {
      findings += Finding(device.status());
      continue;
    }
    std::printf("  GPU %-6d %s, compute capability %s, %d multiprocessors, %s, PCI %s\n", i, device->name().c_str(),
                device->capability().ToString().c_str(), device->multiprocessors(),
                FormatBytes(static_cast<double>(device->total_bytes())).c_str(), device->pci_bus_id().c_str());
  }
  if (const StatusOr<int> placed = DeviceIndexForRank(0, local_ranks, *count); !placed.ok()) {
    findings += Finding(placed.status());
  }
  return findings;
}

}  // namespace tessera::launcher
