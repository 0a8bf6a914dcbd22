#include "launcher/machine_flags.h"

namespace tessera::launcher {

void AddMachineFlags(CLI::App& command, MachineModel& machine) {
  const CLI::Range rate(1.0, 1e18), seconds(0.0, 1e3);
  command.add_option("--flops", machine.flops_per_second, "attention rate of one rank, FLOP/s")
      ->capture_default_str()
      ->check(rate);
  command.add_option("--latency", machine.link_latency_seconds, "seconds per message within a node")
      ->capture_default_str()
      ->check(seconds);
  command.add_option("--bandwidth", machine.link_bytes_per_second, "bytes per second within a node")
      ->capture_default_str()
      ->check(rate);
  command.add_option("--node-latency", machine.node_latency_seconds, "seconds per message between nodes")
      ->capture_default_str()
      ->check(seconds);
  command.add_option("--node-bandwidth", machine.node_bytes_per_second, "bytes per second between nodes")
      ->capture_default_str()
      ->check(rate);
  command
      .add_option("--memory-bandwidth", machine.memory_bytes_per_second,
                  "bytes per second at which a rank reads its cache and weights (decode)")
      ->capture_default_str()
      ->check(rate);
  command
      .add_option("--projection-flops", machine.projection_flops_per_second,
                  "rate of products with weights, FLOP/s (decode)")
      ->capture_default_str()
      ->check(rate);
  command.add_option("--ranks-per-node", machine.ranks_per_node, "0 = all on one node")
      ->capture_default_str()
      ->check(CLI::Range(0, kMaxRanks));
}

}  // namespace tessera::launcher
