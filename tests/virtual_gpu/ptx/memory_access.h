// Turns the addresses of a warp's access into host pointers: bounds, alignment, shared-memory checks, counters.
#pragma once

#include "tests/virtual_gpu/ptx/binder.h"

namespace tessera::vgpu {

enum class Space : uint8_t { kGeneric, kGlobal, kConst, kShared, kSharedCluster, kLocal, kParam };
enum class Use : uint8_t { kRead, kWrite, kAtomic };

// Of ".global", ".shared::cta", ...; kGeneric when none is given.
Space SpaceOf(const Binder& binder);

struct Pointers {
  uint8_t* at[kLanes];
};

// Addresses of the lanes: the base register, operand[base], plus the immediate.
void LaneAddresses(const Instruction& i, const Warp& w, int base, uint64_t addresses[kLanes]);

// `bytes` is what one lane accesses, a power of two and the alignment. A result other than kNext is a fault.
// For writes of shared memory the check for races comes with CheckSharedWrite, once the values are known.
Signal Resolve(const Instruction& i, Warp& w, uint32_t lanes, Space space, Use use, uint32_t bytes,
               const uint64_t addresses[kLanes], Pointers* pointers);

// To be called before `value` is stored at `at` if that is shared memory of any block of the cluster.
Signal CheckSharedWrite(const Instruction& i, Warp& w, int lane, const uint8_t* at, uint32_t bytes, bool same);

// An atomic of shared memory: what it wrote counts as written by this lane. Atomics do not race with each other.
void RecordSharedAtomic(Warp& w, int lane, const uint8_t* at, uint32_t bytes);

// One access of a lane (or of the warp: lane -1) to a window address of this block, with all checks but alignment.
// Null on a fault.
uint8_t* SharedBytes(const Instruction& i, Warp& w, int lane, uint64_t address, uint32_t bytes, bool cluster,
                     Block** owner);

bool InGlobal(Execution& run, uint64_t address, uint64_t bytes);
Signal GlobalFault(const Instruction& i, Warp& w, int lane, uint64_t address, uint64_t bytes);

// Counters.
void CountGlobal(Counters& counters, const uint64_t* addresses, uint32_t lanes, uint32_t bytes, bool write);
void CountShared(Counters& counters, const uint64_t* addresses, uint32_t lanes, uint32_t bytes, bool write);

}  // namespace tessera::vgpu
