// The running state: a warp of 32 lanes that may be split into paths, its block, and the cluster around it.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tests/virtual_gpu/ptx/program.h"

namespace tessera::vgpu {

struct Block;
class SharedShadow;
class AsyncCopies;
class MatrixQueue;
struct MbarrierTable;

// Lanes that are at the same place. A warp that is converged has one.
struct Path {
  enum State : uint8_t {
    kReady,
    kLanes,   // waits for other lanes of the warp at pc
    kAsleep,  // in a block barrier, or on an mbarrier: until block.wakeups differs from wakeups_seen
  };
  uint32_t pc = 0;
  uint32_t lanes = 0;
  State state = kReady;
  bool in_barrier = false;  // asleep in bar.sync: only the barrier wakes it
  bool yielded = false;     // the other paths of its warp go first
  uint64_t wakeups_seen = 0;
  uint32_t waits_for = 0;         // of try_wait: the mbarrier's offset, for messages
  std::vector<uint32_t> returns;  // call stack
};

// Vector clocks order accesses to shared memory; one entry per agent of the cluster (each warp, and one per block for
// asynchronous copies).
using Clock = std::vector<uint32_t>;

struct Warp {
  Slot* slots = nullptr;
  const Slot* constants = nullptr;
  Block* block = nullptr;
  uint32_t index = 0;       // in the block
  uint32_t agent = 0;       // in the cluster
  uint32_t live = 0;        // lanes that have not ended
  uint32_t pc = 0;          // of the instruction in execution
  uint32_t path_lanes = 0;  // all lanes at pc, guarded or not
  std::vector<Path> paths;
  Clock clock;
  Clock fenced;                // what was ordered before this warp's last fence.proxy.async
  uint64_t cluster_phase = 0;  // the phase of barrier.cluster it arrived in
  std::vector<uint32_t> lane_target;
  std::unique_ptr<AsyncCopies> copies;    // cp.async in flight
  std::unique_ptr<MatrixQueue> matrices;  // wgmma in flight
  bool matrices_in_flight = false;        // then every instruction's registers are checked against theirs

  template <class T = uint32_t>
  const T* Read(int32_t slot) const {
    return reinterpret_cast<const T*>(slot >= 0 ? slots + slot : constants + ~slot);
  }
  template <class T = uint32_t>
  T* Write(int32_t slot) {
    return reinterpret_cast<T*>(slots + slot);
  }
  // Records a fault at the instruction in execution and returns kFault. lane -1: the whole warp.
  Signal Fail(const Instruction& instruction, FaultKind kind, int lane, const std::string& what);
  void Tick() { ++clock[agent]; }
};

inline void Join(Clock& into, const Clock& from) {
  for (size_t i = 0; i < into.size(); ++i) into[i] = into[i] < from[i] ? from[i] : into[i];
}

struct Barrier {
  uint32_t expected_threads = 0;  // 0: nobody is here
  uint32_t arrived_threads = 0;
  bool all = false;            // no count was given: everybody alive
  uint32_t arrived_warps = 0;  // bits
  uint32_t waiting_warps = 0;
  Clock clock;
  uint32_t reduction_and = 1, reduction_or = 0, reduction_count = 0;
};

struct Cluster;
struct Execution;

struct Block {
  Execution* run = nullptr;
  Cluster* cluster = nullptr;
  uint32_t rank = 0;  // in the cluster
  Dim3 index{0, 0, 0};
  std::vector<Warp> warps;
  std::unique_ptr<std::byte[]> shared_storage;
  std::byte* shared = nullptr;  // what is at window address kSharedBase
  uint32_t shared_bytes = 0;
  std::vector<std::byte> local;
  std::array<Barrier, 16> barriers;
  std::unique_ptr<SharedShadow> shadow;
  std::unique_ptr<MbarrierTable> mbarriers;
  uint64_t wakeups = 0;      // counts changes that sleeping paths may wait for
  uint32_t async_clock = 0;  // of the block's asynchronous copies
  uint64_t jumps = 0;        // taken branches
};

struct BulkCopies;

struct Cluster {
  Dim3 shape, index{0, 0, 0};
  std::vector<std::unique_ptr<Block>> blocks;
  std::unique_ptr<BulkCopies> bulk;  // cp.async.bulk in flight
  std::vector<bool> arrived;         // at barrier.cluster, per agent
  uint64_t phase = 0;                // completed phases of barrier.cluster
  Clock arriving, completed;         // as of an mbarrier
  uint32_t agents = 0;
  Clock fenced_by_self;  // per agent: its own clock at its last fence.proxy.async
};

// What all blocks of a launch that one thread runs share.
struct Execution {
  const Launch* launch = nullptr;
  const Kernel* kernel = nullptr;
  const AddressSpace* memory = nullptr;
  AddressSpace::Snapshot ranges;
  std::byte* parameters = nullptr;  // a copy of the launch's, aligned as tensor maps want it
  Range last_range;                 // where the last global access was
  uint32_t clock_base = 0;          // clocks of earlier blocks are at most this: their stamps mean "before this block"
  std::vector<uint64_t> executed;   // per instruction
  Counters counters;
  std::optional<Fault> fault;
};

}  // namespace tessera::vgpu
