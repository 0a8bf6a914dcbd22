// For tests: runs a body of PTX on one warp or block, with arrays as parameters.
#pragma once

#include <bit>
#include <cstring>
#include <string>
#include <vector>

#include "tests/virtual_gpu/ptx/machine.h"

namespace tessera::vgpu {

// A kernel with pointer parameters p0, p1, ... already in %rd0, %rd1, ... as global addresses; %tid.x in %t; the byte
// offsets of this thread's 32-bit and 64-bit elements in %o4 and %o8.
std::string KernelText(const std::string& body, int pointers, const std::string& before = "",
                       const std::string& target = "sm_90a");

struct RunResult {
  std::string parse_error;
  std::optional<Fault> fault;
  Counters counters;
};

class Device {
 public:
  // A buffer the kernel may touch. The bytes stay where they are as long as this object lives.
  template <class T>
  T* Buffer(const std::vector<T>& contents) {
    const size_t bytes = contents.size() * sizeof(T);
    storage_.push_back(std::make_unique<std::byte[]>(bytes + 512));
    const uint64_t raw = reinterpret_cast<uint64_t>(storage_.back().get());
    std::byte* aligned = storage_.back().get() + (256 - raw % 256) % 256;
    std::memcpy(aligned, contents.data(), bytes);
    memory_.Add(reinterpret_cast<uint64_t>(aligned), bytes);
    return reinterpret_cast<T*>(aligned);
  }

  RunResult Run(const std::string& ptx, const std::vector<const void*>& pointers, Dim3 grid = {},
                Dim3 block = {32, 1, 1}, uint32_t dynamic_shared_bytes = 0, Dim3 cluster = {}, int workers = 1);

  AddressSpace& memory() { return memory_; }

 private:
  AddressSpace memory_;
  std::vector<std::unique_ptr<std::byte[]>> storage_;
};

// One warp: `body` computes register %result (of `result_type`, 32 or 64 bits) from registers %a, %b, %c, loaded from
// the given values (bits, one per lane; missing lanes repeat the last). Returns the result's bits per lane.
struct Lanes {
  std::vector<uint64_t> a, b, c;
};
std::vector<uint64_t> Evaluate(const std::string& body, const Lanes& inputs, int source_bits, int result_bits,
                               std::string* error = nullptr);

inline uint64_t Bits(float value) {
  return std::bit_cast<uint32_t>(value);
}
inline uint64_t Bits(double value) {
  return std::bit_cast<uint64_t>(value);
}
inline float FloatOf(uint64_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits));
}
inline double DoubleOf(uint64_t bits) {
  return std::bit_cast<double>(bits);
}

}  // namespace tessera::vgpu
