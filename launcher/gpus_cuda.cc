#include <cstdio>
#include <string>

#include "absl/strings/str_join.h"
#include "collectives/nccl/communicator.h"
#include "launcher/gpus.h"
#include "launcher/table.h"
#include "runtime/device/cuda/device.h"
#include "runtime/device/cuda/placement.h"

namespace tessera::launcher {
namespace {

int Finding(const Status& status) {
  std::printf("  finding: %s\n", std::string(status.message()).c_str());
  return 1;
}

// Where a GPU is: what a rank that uses it should be bound to, and the network cards that NCCL prefers for it.
void PrintSurroundings(const StatusOr<NodeTopology>& topology, const std::string& pci_bus_id) {
  if (!topology.ok()) return;
  std::string networks;
  for (const NetworkCard& card : topology->NetworksNear(pci_bus_id)) {
    absl::StrAppend(&networks, networks.empty() ? "" : ", ", card.name, " (", std::string(Name(card.distance)), ")");
  }
  std::printf("             near processors %s; network cards: %s\n",
              ToString(topology->ProcessorsNear(pci_bus_id)).c_str(), networks.empty() ? "none" : networks.c_str());
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
  const StatusOr<NodeTopology> topology = NodeTopology::OfThisNode();
  for (int i = 0; i < *count; ++i) {
    const StatusOr<CudaDevice> device = CudaDevice::Open(i);
    if (!device.ok()) {
      findings += Finding(device.status());
      continue;
    }
    std::printf("  GPU %-6d %s, compute capability %s, %d multiprocessors, %s, PCI %s\n", i, device->name().c_str(),
                device->capability().ToString().c_str(), device->multiprocessors(),
                FormatBytes(static_cast<double>(device->total_bytes())).c_str(), device->pci_bus_id().c_str());
    PrintSurroundings(topology, device->pci_bus_id());
  }
  // Other ranks of the node may see other GPUs: that shows when a job starts.
  if (const StatusOr<RankSeen> seen = SeenFromHere(); !seen.ok()) {
    findings += Finding(seen.status());
  } else if (const Status placed = PlaceRanks(std::vector<RankSeen>(local_ranks, *seen)).status(); !placed.ok()) {
    findings += Finding(placed);
  }
  return findings;
}

}  // namespace tessera::launcher
