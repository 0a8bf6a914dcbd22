// What is known about each word of a block's shared memory: who wrote and read it last, whether it was ever written,
// whether a copy into it is in flight. Races are found by vector clocks: an access must be ordered after the last write
// to the same bytes, and a write also after every read, by barriers, mbarriers or, between lanes of one warp,
// bar.warp.sync. Bytes are told apart; reads are kept per warp, so a write after another lane's read within one warp is
// not found.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "tests/virtual_gpu/ptx/warp.h"

namespace tessera::vgpu {

class SharedShadow {
 public:
  static constexpr int kManyLanes = 255;  // the whole warp, or an asynchronous copy

  // The last of each block's agents is its asynchronous copies, the others its warps.
  SharedShadow(uint32_t bytes, uint32_t agents, uint32_t agents_per_block);

  // Offsets are from the start of the block's shared memory, within it. `order` is what the accessor has synchronised
  // with: its warp's clock, or the clock when an asynchronous operation was issued.
  struct Access {
    uint32_t agent = 0;
    int lane = 0;
    const Clock* order = nullptr;
    uint32_t epoch = 0;  // stamp of this access: the agent's own clock
    uint32_t base = 0;   // stamps up to this are of earlier blocks
    uint32_t pc = 0;
    // Of asynchronous reads: every write must be ordered before `order`, the own agent's too, and writes of threads
    // must have been made visible to the asynchronous proxy by a fence. Null for the others.
    const Clock* fenced = nullptr;          // by the issuing warp
    const Clock* fenced_by_self = nullptr;  // per agent: its own clock at its last fence
  };
  struct Problem {
    FaultKind kind = FaultKind::kSharedRace;
    std::string what;
  };
  static Access Of(const Warp& warp, int lane);

  // Nothing wrong: true, and the access is recorded. Wrong: false; Describe says what.
  bool Read(const Access& a, uint32_t offset, uint32_t bytes) {
    if (bytes == 16 && ReadFour(a, offset / 4)) return true;
    const uint32_t last = (offset + bytes - 1) / 4;
    for (uint32_t word = offset / 4; word <= last; ++word) {
      const uint32_t mask = Mask(word, offset, bytes);
      const Write& w = writes_[word];
      if (in_flight_[word] != 0 || w.clock <= a.base || (w.initial & mask) != mask) return false;
      if ((w.mask & mask) != 0 && Unordered(a, w)) return false;
      if (a.fenced != nullptr && Unfenced(a, w)) return false;
      uint32_t& read = reads_[a.agent][word];
      read = read >> 4 == a.epoch ? read | mask : a.epoch << 4 | mask;
    }
    return true;
  }
  // `same`: the bytes written are those that are there, so that nobody can tell which write came last.
  bool Written(const Access& a, uint32_t offset, uint32_t bytes, bool same);

  // Records a write that was checked when it was issued.
  void Stamp(const Access& a, uint32_t offset, uint32_t bytes);

  // Why the last Read or Written of these arguments was false.
  Problem Describe(const Access& a, uint32_t offset, uint32_t bytes, bool write, const Kernel& kernel) const;

  // A copy into these bytes begins and ends. Its own write is recorded when it ends.
  void Begin(uint32_t offset, uint32_t bytes, uint32_t pc);
  void End(uint32_t offset, uint32_t bytes);
  void Clear();  // forgets everything: all clocks start again

 private:
  struct Write {
    uint32_t clock = 0;
    uint16_t agent = 0;
    uint8_t lane = 0;
    uint8_t mask : 4;     // bytes of the last write
    uint8_t initial : 4;  // bytes ever written in this block
    Write() : mask(0), initial(0) {}
  };
  static uint32_t Mask(uint32_t word, uint32_t offset, uint32_t bytes) {
    const uint32_t begin = word * 4;
    if (offset <= begin && offset + bytes >= begin + 4) return 15;
    const uint32_t from = offset > begin ? offset - begin : 0;
    const uint32_t to = offset + bytes < begin + 4 ? offset + bytes - begin : 4;
    return ((1u << to) - 1) & ~((1u << from) - 1);
  }
  // Four words that were written alike: one check for all. False: look at each.
  bool ReadFour(const Access& a, uint32_t word) {
    uint32_t copies;
    std::memcpy(&copies, &in_flight_[word], 4);
    const Write& w = writes_[word];
    if (copies != 0 || w.clock <= a.base || w.initial != 15 || w.mask != 15) return false;
    if (std::memcmp(&w, &w + 1, 3 * sizeof(Write)) != 0) return false;  // each equals the next
    if (Unordered(a, w) || (a.fenced != nullptr && Unfenced(a, w))) return false;
    const uint32_t stamp = a.epoch << 4 | 15;
    uint32_t* reads = &reads_[a.agent][word];
    for (int i = 0; i < 4; ++i) reads[i] = stamp;
    return true;
  }
  static bool Unordered(const Access& a, const Write& w) {
    if (w.agent != a.agent || a.fenced != nullptr) return w.clock > (*a.order)[w.agent];
    return w.clock == a.epoch && w.lane != a.lane;
  }
  // The last agent of each block writes asynchronously and needs no fence: it marks its own clock as fenced.
  static bool Unfenced(const Access& a, const Write& w) {
    return w.clock > (*a.fenced)[w.agent] && w.clock > (*a.fenced_by_self)[w.agent];
  }
  // The agent whose read of these bytes is not ordered before the access, or -1.
  int UnorderedReader(const Access& a, uint32_t word, uint32_t mask) const {
    for (uint32_t r = 0; r < reads_.size(); ++r) {
      const uint32_t read = reads_[r][word];
      if ((read & mask) != 0 && r != a.agent && read >> 4 > (*a.order)[r]) return static_cast<int>(r);
    }
    return -1;
  }

  uint32_t agents_per_block_;
  std::vector<Write> writes_;
  std::vector<uint32_t> write_pc_;
  std::vector<uint8_t> in_flight_;            // copies
  std::vector<std::vector<uint32_t>> reads_;  // per agent: clock << 4 | bytes
};

}  // namespace tessera::vgpu
