// cp.async in flight, per warp. A copy happens when its thread waits for it and not before, so that reading without a
// wait sees the old bytes; the source is read at that moment too.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "tests/virtual_gpu/ptx/warp.h"

namespace tessera::vgpu {

class AsyncCopies {
 public:
  struct Copy {
    uint8_t* to;
    const uint8_t* from;
    uint32_t offset;  // of `to` in shared memory
    uint8_t bytes;
    uint8_t source_bytes;  // the rest is filled with zeros
    uint8_t lane;
    uint32_t group;  // of its lane
  };

  void Add(const Copy& copy) {
    copies_.push_back(copy);
    copies_.back().group = group_[copy.lane];
  }
  void Commit(uint32_t lanes) {
    for (int l = 0; l < kLanes; ++l) group_[l] += lanes >> l & 1;
  }
  // All committed groups of these lanes but the last `keep` are done.
  void Wait(Warp& warp, uint32_t lanes, uint32_t keep);
  // All copies of one lane are done, committed or not.
  void Finish(Warp& warp, int lane);

 private:
  template <class Done>
  void Deliver(Warp& warp, const Done& done);

  std::vector<Copy> copies_;
  std::array<uint32_t, kLanes> group_{};
};

}  // namespace tessera::vgpu
