// What a kernel did, counted: the honest part of a performance prediction.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace tessera::vgpu {

enum class InstructionClass : uint8_t {
  kInteger,
  kFloat,
  kSpecial,  // ex2, lg2, rcp, rsqrt, sqrt, sin, cos, tanh, div
  kConvert,
  kMove,
  kControl,
  kGlobalLoad,
  kGlobalStore,
  kSharedLoad,
  kSharedStore,
  kLocal,
  kParameter,
  kAtomic,
  kMatrixLoad,  // ldmatrix, stmatrix
  kTensorCore,  // mma, wgmma
  kAsyncCopy,   // cp.async, cp.async.bulk
  kBarrier,     // bar, mbarrier, fence
  kShuffle,     // shfl, vote, match, redux, elect
  kCount,
};
std::string_view Name(InstructionClass c);

struct Counters {
  std::array<uint64_t, static_cast<size_t>(InstructionClass::kCount)> instructions{};  // warp instructions
  uint64_t blocks = 0;
  uint64_t tensor_flops = 0;  // multiply and add count as two
  uint64_t global_read_bytes = 0, global_written_bytes = 0;
  uint64_t shared_read_bytes = 0, shared_written_bytes = 0;
  // Coalescing: a request is one warp instruction; the ideal is its bytes in whole 32-byte sectors.
  uint64_t global_requests = 0, global_sectors = 0, global_ideal_sectors = 0;
  // Bank conflicts: passes over the 32 banks of 4 bytes that requests needed, and the least that their bytes allow.
  uint64_t shared_requests = 0, shared_passes = 0, shared_ideal_passes = 0;
  uint64_t bulk_copy_bytes = 0;  // of cp.async.bulk; in the global bytes too

  uint64_t Instructions() const;
  uint64_t Of(InstructionClass c) const { return instructions[static_cast<size_t>(c)]; }
  uint64_t BankConflicts() const { return shared_passes - shared_ideal_passes; }
  Counters& operator+=(const Counters& other);
};

// A table for people, one line per figure that is not zero.
std::string Table(std::string_view kernel, const Counters& counters);

}  // namespace tessera::vgpu
