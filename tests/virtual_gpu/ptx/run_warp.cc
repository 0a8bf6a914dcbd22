// One warp's turn. Paths run lowest program counter first and merge when they meet, so lanes that diverged come
// together again at the first instruction they share.
#include <algorithm>

#include "tests/virtual_gpu/ptx/lanes.h"
#include "tests/virtual_gpu/ptx/matrix_queue.h"
#include "tests/virtual_gpu/ptx/schedule.h"

namespace tessera::vgpu {
namespace {

constexpr uint32_t kNoLimit = ~0u;
constexpr int kJumpsPerTurn = 4096;  // a warp that polls memory must let the others write it

class Runner {
 public:
  explicit Runner(Warp& warp) : w_(warp), block_(*warp.block), code_(warp.block->run->kernel->code.data()) {}

  Turn Run() {
    Turn turn = Turn::kNothing;
    while (w_.live != 0) {
      const int path = Select();
      if (path < 0) return turn;
      current_ = path;
      const Turn result = RunPath();
      if (result == Turn::kFault || stop_) return result;
      turn = Turn::kWorked;
    }
    return turn;
  }

 private:
  static bool CanRun(const Path& path, const Block& block) {
    return path.state == Path::kReady ||
           (path.state == Path::kAsleep && !path.in_barrier && path.wakeups_seen != block.wakeups);
  }

  int Select() {
    for (int attempt = 0; attempt < 2; ++attempt) {
      int best = -1;
      for (size_t p = 0; p < w_.paths.size(); ++p) {
        const Path& path = w_.paths[p];
        if (!CanRun(path, block_) || path.yielded) continue;
        if (best < 0 || path.pc < w_.paths[best].pc) best = static_cast<int>(p);
      }
      if (best >= 0) {
        w_.paths[best].state = Path::kReady;
        return best;
      }
      for (Path& path : w_.paths) path.yielded = false;
    }
    return -1;
  }

  // Where the running path may meet another: it must stop there.
  uint32_t Limit() const {
    uint32_t limit = kNoLimit;
    for (size_t p = 0; p < w_.paths.size(); ++p) {
      const Path& path = w_.paths[p];
      if (static_cast<int>(p) != current_ && path.state != Path::kAsleep && path.pc >= w_.paths[current_].pc) {
        limit = std::min(limit, path.pc);
      }
    }
    return limit;
  }

  // Joins the current path with those at the same place.
  void Merge() {
    for (size_t p = 0; p < w_.paths.size();) {
      Path& mine = w_.paths[current_];
      Path& other = w_.paths[p];
      if (static_cast<int>(p) == current_ || other.state == Path::kAsleep || other.pc != mine.pc ||
          other.returns != mine.returns) {
        ++p;
        continue;
      }
      mine.lanes |= other.lanes;
      Erase(p);
    }
  }

  void Erase(size_t p) {
    w_.paths.erase(w_.paths.begin() + p);
    if (current_ > static_cast<int>(p)) --current_;
  }

  // The lanes of `moved` leave the current path for `pc`.
  void Split(uint32_t moved, uint32_t pc) {
    Path other;
    other.pc = pc;
    other.lanes = moved;
    other.returns = w_.paths[current_].returns;
    w_.paths[current_].lanes &= ~moved;
    w_.paths.push_back(std::move(other));
  }

  void Scatter(uint32_t lanes) {
    while (lanes != 0) {
      const uint32_t pc = w_.lane_target[__builtin_ctz(lanes)];
      uint32_t same = 0;
      for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
        const int l = __builtin_ctz(rest);
        if (w_.lane_target[l] == pc) same |= 1u << l;
      }
      lanes &= ~same;
      if (same == w_.paths[current_].lanes) {
        w_.paths[current_].pc = pc;
        return;
      }
      Split(same, pc);
    }
  }

  void End(uint32_t lanes) {
    w_.live &= ~lanes;
    w_.paths[current_].lanes &= ~lanes;
    if (w_.live == 0) {
      w_.paths.clear();
      WarpEnded(block_);
      ++block_.wakeups;
    }
  }

  Turn RunPath();
  bool Act(Signal signal, const Instruction& i, uint32_t lanes);

  Warp& w_;
  Block& block_;
  const Instruction* code_;
  int current_ = 0;
  int jumps_ = 0;
  bool stop_ = false;  // the warp's turn is over, not only the path's
};

uint32_t GuardLanes(const Warp& w, const Instruction& i) {
  const uint32_t lanes = PredicateBits(w.Read(i.guard));
  return i.guard_negated ? ~lanes : lanes;
}

// What happens after an instruction that is not simply followed by the next. False: this path stops for now.
bool Runner::Act(Signal signal, const Instruction& i, uint32_t lanes) {
  Path& path = w_.paths[current_];
  switch (signal) {
    case Signal::kBranch:
    case Signal::kCall: {
      if (signal == Signal::kCall) {
        if (lanes != path.lanes) Split(path.lanes & ~lanes, path.pc + 1);
        w_.paths[current_].returns.push_back(path.pc + 1);
        w_.paths[current_].pc = i.target;
      } else if (lanes == path.lanes) {
        path.pc = i.target;
      } else {
        path.pc = path.pc + 1;
        Split(lanes, i.target);
      }
      ++jumps_;
      return false;
    }
    case Signal::kScatter:
      if (lanes != path.lanes) Split(path.lanes & ~lanes, path.pc + 1);
      Scatter(lanes);
      ++jumps_;
      return false;
    case Signal::kReturn:
      if (!path.returns.empty()) {
        if (lanes != path.lanes) Split(path.lanes & ~lanes, path.pc + 1);
        w_.paths[current_].pc = w_.paths[current_].returns.back();
        w_.paths[current_].returns.pop_back();
        return false;
      }
      [[fallthrough]];
    case Signal::kExit:
      ++path.pc;
      End(lanes);
      if (w_.live != 0 && w_.paths[current_].lanes == 0) {
        w_.paths.erase(w_.paths.begin() + current_);
      }
      return false;
    case Signal::kWaitLanes:
      path.state = Path::kLanes;
      return false;
    case Signal::kWaitBlock:
      ++path.pc;
      path.state = Path::kAsleep;
      path.in_barrier = true;
      return false;
    case Signal::kRetry:
      path.state = Path::kAsleep;
      path.wakeups_seen = block_.wakeups;
      return false;
    case Signal::kYield:
      ++path.pc;
      path.yielded = true;
      stop_ = true;
      return false;
    default:
      return true;
  }
}

Turn Runner::RunPath() {
  uint64_t* const executed = block_.run->executed.data();
  Merge();
  for (;;) {
    Path& path = w_.paths[current_];
    const uint32_t limit = Limit();
    const uint32_t here = path.lanes;
    uint32_t pc = path.pc;
    w_.path_lanes = here;
    for (;;) {
      const Instruction& i = code_[pc];
      uint32_t lanes = here;
      if (i.guard != Instruction::kNoSlot) lanes &= GuardLanes(w_, i);
      ++executed[pc];
      if (lanes != 0) {
        w_.pc = pc;
        if (w_.matrices_in_flight && w_.matrices->Check(i, w_) != Signal::kNext) return Turn::kFault;
        const Signal signal = i.handler(i, w_, lanes);
        if (signal != Signal::kNext) {
          path.pc = pc;
          if (signal == Signal::kFault) return Turn::kFault;
          // A branch of all lanes with nobody else about is the common case: stay in this function.
          if (signal == Signal::kBranch && lanes == here && w_.paths.size() == 1 && jumps_ < kJumpsPerTurn) {
            pc = i.target;
            ++jumps_;
            continue;
          }
          if (signal == Signal::kRetry || signal == Signal::kWaitLanes) --executed[pc];
          Act(signal, i, lanes);
          if (jumps_ >= kJumpsPerTurn) {
            block_.jumps += jumps_;
            stop_ = true;
            return Turn::kWorked;
          }
          return stop_ ? Turn::kIdle : Turn::kWorked;
        }
      }
      if (++pc == limit) break;
    }
    path.pc = pc;
    Merge();
  }
}

}  // namespace

Turn RunWarp(Warp& warp) {
  return Runner(warp).Run();
}

}  // namespace tessera::vgpu
