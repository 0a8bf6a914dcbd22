#include "runtime/device/cuda/topology.h"

#include <hwloc.h>

#include <algorithm>
#include <tuple>
#include <utility>

namespace tessera {
namespace {

CoreMask SetOf(hwloc_const_bitmap_t bitmap) {
  CoreMask set;
  if (bitmap == nullptr) return set;
  for (int i = hwloc_bitmap_first(bitmap); i >= 0 && i < static_cast<int>(set.size());
       i = hwloc_bitmap_next(bitmap, i)) {
    set.set(i);
  }
  return set;
}

// hwloc_get_common_ancestor_obj goes by depths, which bridges and cards do not have.
hwloc_obj_t CommonAncestor(hwloc_obj_t a, hwloc_obj_t b) {
  for (; a != nullptr; a = a->parent) {
    for (hwloc_obj_t other = b; other != nullptr; other = other->parent) {
      if (a == other) return a;
    }
  }
  return nullptr;
}

// Above the last bridge of a device's path stands an object that has processors.
PciDistance DistanceOf(hwloc_obj_t a, hwloc_obj_t b) {
  const hwloc_obj_t common = CommonAncestor(a, b);
  if (common->type == HWLOC_OBJ_BRIDGE) {
    return common->attr->bridge.upstream_type == HWLOC_OBJ_BRIDGE_PCI ? PciDistance::kSwitch : PciDistance::kHostBridge;
  }
  // Two functions of one card, or two ports of one function.
  if (hwloc_obj_type_is_io(common->type) != 0) return PciDistance::kSwitch;
  return hwloc_bitmap_weight(common->nodeset) == 1 ? PciDistance::kNumaNode : PciDistance::kNode;
}

bool IsNetwork(hwloc_obj_t device) {
  const auto type = device->attr->osdev.type;
  return type == HWLOC_OBJ_OSDEV_OPENFABRICS || type == HWLOC_OBJ_OSDEV_NETWORK;
}

// The function of a PCI card that an operating-system device belongs to; null for virtual ones.
hwloc_obj_t CardOf(hwloc_obj_t device) {
  while (device != nullptr && device->type != HWLOC_OBJ_PCI_DEVICE) device = device->parent;
  return device;
}

}  // namespace

std::string_view Name(PciDistance distance) {
  switch (distance) {
    case PciDistance::kSwitch:
      return "switch";
    case PciDistance::kHostBridge:
      return "host bridge";
    case PciDistance::kNumaNode:
      return "NUMA node";
    case PciDistance::kNode:
      return "node";
  }
  return "?";
}

void NodeTopology::Destroy::operator()(hwloc_topology* topology) const {
  hwloc_topology_destroy(topology);
}

StatusOr<NodeTopology> NodeTopology::Load(Handle handle) {
  // Bridges and cards; without this hwloc leaves all of them out.
  if (hwloc_topology_set_io_types_filter(handle.get(), HWLOC_TYPE_FILTER_KEEP_IMPORTANT) != 0 ||
      hwloc_topology_load(handle.get()) != 0) {
    return absl::UnavailableError("hwloc cannot tell how this node is built");
  }
  return NodeTopology(std::move(handle));
}

StatusOr<NodeTopology> NodeTopology::OfThisNode() {
  hwloc_topology_t topology = nullptr;
  if (hwloc_topology_init(&topology) != 0) return absl::UnavailableError("hwloc cannot be started");
  return Load(Handle(topology));
}

StatusOr<NodeTopology> NodeTopology::FromXml(const std::string& path) {
  hwloc_topology_t topology = nullptr;
  if (hwloc_topology_init(&topology) != 0) return absl::UnavailableError("hwloc cannot be started");
  Handle handle(topology);
  if (hwloc_topology_set_xml(topology, path.c_str()) != 0) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": hwloc cannot read it as a topology in XML"));
  }
  return Load(std::move(handle));
}

CoreMask NodeTopology::ProcessorsNear(const std::string& pci_bus_id) const {
  const CoreMask all = SetOf(hwloc_topology_get_topology_cpuset(handle_.get()));
  const hwloc_obj_t device = hwloc_get_pcidev_by_busidstring(handle_.get(), pci_bus_id.c_str());
  if (device == nullptr) return all;
  const CoreMask near = SetOf(hwloc_get_non_io_ancestor_obj(handle_.get(), device)->cpuset);
  return near.any() ? near : all;
}

std::vector<NetworkCard> NodeTopology::NetworksNear(const std::string& pci_bus_id) const {
  const hwloc_obj_t device = hwloc_get_pcidev_by_busidstring(handle_.get(), pci_bus_id.c_str());
  std::vector<NetworkCard> cards;
  if (device == nullptr) return cards;
  // A card that has both is listed once, by the name that NCCL knows it by.
  std::vector<hwloc_obj_t> verbs;
  for (hwloc_obj_t os = nullptr; (os = hwloc_get_next_osdev(handle_.get(), os)) != nullptr;) {
    if (os->attr->osdev.type == HWLOC_OBJ_OSDEV_OPENFABRICS) verbs.push_back(CardOf(os));
  }
  for (hwloc_obj_t os = nullptr; (os = hwloc_get_next_osdev(handle_.get(), os)) != nullptr;) {
    const hwloc_obj_t card = CardOf(os);
    if (!IsNetwork(os) || card == nullptr) continue;
    const bool has_verbs = std::find(verbs.begin(), verbs.end(), card) != verbs.end();
    if (has_verbs && os->attr->osdev.type == HWLOC_OBJ_OSDEV_NETWORK) continue;
    cards.push_back({os->name, DistanceOf(device, card)});
  }
  std::sort(cards.begin(), cards.end(), [](const NetworkCard& a, const NetworkCard& b) {
    return std::tie(a.distance, a.name) < std::tie(b.distance, b.name);
  });
  return cards;
}

}  // namespace tessera
