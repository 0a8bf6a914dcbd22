// How near the GPUs, network cards and processors of a node are to each other, as hwloc sees it.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/status.h"
#include "runtime/device/numa.h"

struct hwloc_topology;

namespace tessera {

// What the path between two devices crosses, nearest first; the names in brackets are those of `nvidia-smi topo`.
enum class PciDistance {
  kSwitch,      // PCIe switches only (PIX, PXB)
  kHostBridge,  // the processor's PCIe root (PHB)
  kNumaNode,    // the interconnect between roots of a NUMA node (NODE)
  kNode         // the interconnect between NUMA nodes (SYS)
};
std::string_view Name(PciDistance distance);  // "switch", "host bridge", "NUMA node", "node"

struct NetworkCard {
  std::string name;  // the operating system's: "mlx5_0" where it speaks InfiniBand verbs, otherwise "eth0"
  PciDistance distance = PciDistance::kNode;
};

// Immutable.
class NodeTopology {
 public:
  // Unavailable when hwloc cannot tell.
  static StatusOr<NodeTopology> OfThisNode();
  // From a file that `lstopo --of xml` wrote. InvalidArgument names the file.
  static StatusOr<NodeTopology> FromXml(const std::string& path);

  // Processors of the NUMA node that a PCI device ("0000:01:00.0") hangs on; all of the node's for a device that hwloc
  // does not know.
  CoreMask ProcessorsNear(const std::string& pci_bus_id) const;
  // The node's network cards on PCI, nearest to the device first, by name among equals. None for a device that hwloc
  // does not know.
  std::vector<NetworkCard> NetworksNear(const std::string& pci_bus_id) const;

 private:
  struct Destroy {
    void operator()(hwloc_topology* topology) const;
  };
  using Handle = std::unique_ptr<hwloc_topology, Destroy>;
  explicit NodeTopology(Handle handle) : handle_(std::move(handle)) {}
  static StatusOr<NodeTopology> Load(Handle handle);

  Handle handle_;
};

}  // namespace tessera
