// What the virtual machine has. Read once from the environment:
//
//   VGPU_DEVICES       number of GPUs of this node (1); "none" is a machine without a driver
//   VGPU_ARCH          compute capability of all of them (9.0): 7.5, 8.0, 8.6, 8.9, 9.0 or 12.0
//   VGPU_MEMORY_BYTES  memory of each GPU (4294967296)
//   VGPU_COUNTERS      file that receives the counters of every kernel when the process ends (unset: none); %p becomes
//                      the process id
#pragma once

#include <cstdint>
#include <string>

namespace tessera::vgpu {

// The limits of one architecture, from the "Technical Specifications per Compute Capability" of the CUDA programming
// guide; counts of multiprocessors and L2 bytes are those of the data-centre part that has it.
struct Architecture {
  int major, minor;
  int multiprocessors;
  int shared_bytes_per_multiprocessor;
  int shared_bytes_per_block_opt_in;
  int threads_per_multiprocessor;
  int blocks_per_multiprocessor;
  int l2_bytes;
};

struct Config {
  std::string error;  // not empty: a variable is malformed and the machine does not start
  bool driver = true;
  int devices = 1;
  Architecture architecture{};
  int64_t memory_bytes = int64_t{4} << 30;
  std::string counters_path;
};

const Config& GetConfig();

}  // namespace tessera::vgpu
