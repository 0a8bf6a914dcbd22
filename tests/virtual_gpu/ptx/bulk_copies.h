// cp.async.bulk in flight: copies by the asynchronous proxy, delivered when nobody can go on without them.
#pragma once

#include <deque>

#include "tests/virtual_gpu/ptx/warp.h"

namespace tessera::vgpu {

struct BulkCopy {
  struct Piece {
    uint8_t* to;
    const uint8_t* from;  // null: zeros
    uint32_t bytes;
  };
  enum Kind : uint8_t { kLoad, kStore, kAdd32, kAdd16, kAddB16 };  // kAdd: a store that adds f32, f16 or bf16
  Kind kind = kLoad;
  std::vector<Piece> pieces;
  Warp* issuer = nullptr;
  int lane = 0;
  const Instruction* instruction = nullptr;
  uint32_t pc = 0;
  // Loads: where bytes arrive, and whom they tell.
  Block* destination = nullptr;
  uint32_t mbarrier = 0;  // offset in the destination's shared memory
  uint32_t tx_bytes = 0;
  uint32_t stamp = 0;  // of its writes
  // Stores: what it may read, and the issuing lane's group.
  Clock order, fenced;
  uint64_t group = 0;
};

struct BulkCopies {
  std::deque<BulkCopy> in_flight;
  std::vector<std::array<uint64_t, kLanes>> groups;  // committed groups of each agent's lanes
};

// Checks a copy's shared-memory side and puts it in flight.
Signal BeginBulkCopy(const Instruction& i, Warp& w, int lane, BulkCopy copy);

// Stores of a lane: all committed groups but the last `keep` are done.
Signal WaitBulkGroups(Warp& w, int lane, uint64_t keep);

// Delivers the youngest copy in flight: copies have no order among each other, and this one lets a wait on the wrong
// mbarrier show. False when there is none, or on a fault (run.fault).
bool DeliverBulkCopy(Execution& run, Cluster& cluster);

// The cluster has ended: no load may be in flight any more. False on a fault.
bool EndOfBulkCopies(Execution& run, Cluster& cluster);

}  // namespace tessera::vgpu
