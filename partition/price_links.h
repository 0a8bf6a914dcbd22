// The link between two ranks of a machine model. Private to partition.
#pragma once

#include "partition/cost.h"

namespace tessera {

struct Link {
  double latency_seconds = 0;
  double bytes_per_second = 0;
};

inline Link LinkBetween(const MachineModel& machine, int a, int b) {
  const bool same_node = machine.ranks_per_node <= 0 || a / machine.ranks_per_node == b / machine.ranks_per_node;
  return same_node ? Link{machine.link_latency_seconds, machine.link_bytes_per_second}
                   : Link{machine.node_latency_seconds, machine.node_bytes_per_second};
}

}  // namespace tessera
