// What this machine can do at most, measured: the denominators of kernel benchmarks.
#pragma once

#include <cstdint>

namespace tessera {

struct MachineLimits {
  double fp32_flops = 0;  // per second, multiply-adds in registers
  double bf16_flops = 0;  // dot products of bf16 pairs in registers; 0 where the processor has none
  double tile_flops = 0;  // bf16 products of an AMX tile unit, with one tile load each; 0 where there is none
  double read_bytes = 0;  // per second, from a buffer beyond the last cache
};

// Of `threads` threads together, the best of many runs of a millisecond or two each. `buffer_bytes` of memory are read,
// none when 0.
MachineLimits MeasureLimits(int threads, int64_t buffer_bytes);

}  // namespace tessera
