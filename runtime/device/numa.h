// Which NUMA nodes the memory of a process should come from. Without a library: nodes are what the system's files say,
// and a policy is one system call.
#pragma once

#include <bitset>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/status.h"

namespace tessera {

// Logical processors of the machine by the system's numbers; those beyond the 1,024 of cpu_set_t are not counted.
using CoreMask = std::bitset<1024>;

struct NumaNode {
  int id = 0;  // the system's number
  CoreMask cores;
};

// "0-3,8,10-11". InvalidArgument for anything else; an empty list is no core.
StatusOr<CoreMask> ParseCoreList(std::string_view list);
std::string ToString(const CoreMask& cores);  // as such a list

// The nodes with cores, by number, of `folder`, which is laid out as /sys/devices/system/node; none when it cannot be
// read or understood.
std::vector<NumaNode> ReadNumaNodes(const std::string& folder = "/sys/devices/system/node");

// Cores this thread may run on; none when the system does not tell.
CoreMask CoresOfThisThread();

// Bit i: node i should hold pages of a large buffer of a process whose threads run on `cores`; 0 when pages should come
// from the node of whichever thread touches them first. That is right where all cores are of one node. Where they are
// of several, it would put a tensor on the node of the one thread that loads it, while every thread reads all keys and
// values and takes whatever rows are next: then pages go to all of those nodes in turn, so that each one's memory
// serves its part. Nodes from 64 on are not used.
uint64_t NodesToInterleave(std::span<const NumaNode> nodes, const CoreMask& cores);

// Asks for the pages of [data, data + bytes), whole pages not yet touched, from `nodes` in turn. A hint: false when the
// system does not take it.
bool InterleavePages(void* data, int64_t bytes, uint64_t nodes);

}  // namespace tessera
