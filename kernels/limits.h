// What this machine can do at most, measured: the denominators of kernel benchmarks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>

namespace tessera {

struct MachineLimits {
  double fp32_flops = 0;  // per second, multiply-adds in registers
  double bf16_flops = 0;  // dot products of bf16 pairs in registers; 0 where the processor has none
  double tile_flops = 0;  // bf16 products of an AMX tile unit, with one tile load each; 0 where there is none
  double read_bytes = 0;  // per second, from a buffer beyond the last cache
};

// Reads a buffer on huge pages with `threads` threads, each a share that it wrote first.
class ReadBandwidth {
 public:
  // Measures 0 when there is no memory for the buffer, or less than 8 KiB per thread of it.
  ReadBandwidth(int threads, int64_t bytes);

  // Bytes per second.
  double Best() const;     // of many runs of a millisecond or two
  double OnePass() const;  // through the whole buffer

 private:
  struct Free {
    void operator()(std::byte* memory) const { std::free(memory); }
  };
  int threads_;
  int64_t slice_ = 0;  // a thread's share is kSlices of them
  std::unique_ptr<std::byte, Free> buffer_;
};

// Of `threads` threads together, the best of many runs of a millisecond or two each.
MachineLimits MeasureLimits(int threads, const ReadBandwidth& bandwidth);

}  // namespace tessera
