// Packs a kernel's registers. nvcc emits thousands of virtual registers, each written once; of them a hundred or two
// live at once. Sharing their slots keeps a warp's register file in the cache: half the time of a run.
#include "tests/virtual_gpu/ptx/registers.h"

#include <algorithm>
#include <map>

namespace tessera::vgpu {
namespace {

using Bits = std::vector<uint64_t>;

bool Get(const Bits& bits, int i) {
  return (bits[static_cast<size_t>(i) / 64] >> (i % 64) & 1) != 0;
}
void Set(Bits& bits, int i) {
  bits[static_cast<size_t>(i) / 64] |= uint64_t{1} << (i % 64);
}

class Packer {
 public:
  Packer(Kernel* kernel, const std::vector<RegisterSlots>& registers) : kernel_(*kernel), registers_(registers) {}

  void Run() {
    register_at_.assign(static_cast<size_t>(kernel_.slots), -1);
    for (size_t r = 0; r < registers_.size(); ++r) {
      for (int s = 0; s < registers_[r].count; ++s) register_at_[registers_[r].first + s] = static_cast<int>(r);
    }
    pinned_.assign(registers_.size(), false);
    PinDeferred();
    FindBlocks();
    FlowBackwards();
    FindIntervals();
    Allocate();
    Rename();
  }

 private:
  struct Block {
    int begin, end;
    std::vector<int> next;
    Bits use, define, live_in, live_out;
  };
  struct Interval {
    int begin = INT_MAX, end = -1;
    void Cover(int at) {
      begin = std::min(begin, at);
      end = std::max(end, at);
    }
  };

  template <class Visit>
  void ForEach(const Instruction& i, const Visit& visit) const {  // visit(register, is_write)
    for (int t = 0; t < i.reads + i.writes; ++t) {
      const int32_t slot = kernel_.touched[i.touched + t];
      if (slot >= 0 && register_at_[slot] >= 0) visit(register_at_[slot], t >= i.reads);
    }
    if (i.guard != Instruction::kNoSlot) visit(register_at_[i.guard], false);
  }

  // A wgmma reads and writes its registers until it is waited for: they are shared with nobody.
  void PinDeferred() {
    for (const Instruction& i : kernel_.code) {
      if (i.source->opcode.substr(0, 5) != "wgmma") continue;
      ForEach(i, [&](int r, bool) { pinned_[r] = true; });
    }
  }

  static bool Ends(const Instruction& i) {
    const std::string& name = i.source->opcode;
    return i.guard == Instruction::kNoSlot && (name.substr(0, 3) == "bra" || name.substr(0, 3) == "brx" ||
                                               name.substr(0, 3) == "ret" || name == "exit" || name == "trap");
  }

  std::vector<int> Targets(const Instruction& i) const {
    const std::string& name = i.source->opcode;
    if (name.substr(0, 3) == "bra") return {i.target};
    if (name.substr(0, 3) != "brx") return {};
    const auto& table = kernel_.branch_tables[static_cast<size_t>(i.immediate)];
    return {table.begin(), table.end()};
  }

  void FindBlocks() {
    const int count = static_cast<int>(kernel_.code.size());
    std::vector<bool> leads(static_cast<size_t>(count) + 1, false);
    leads[0] = true;
    for (int pc = 0; pc < count; ++pc) {
      const std::vector<int> targets = Targets(kernel_.code[pc]);
      for (int target : targets) leads[target] = true;
      if (!targets.empty() || Ends(kernel_.code[pc])) leads[pc + 1] = true;
    }
    std::map<int, int> block_at;
    for (int pc = 0; pc < count; ++pc) {
      if (leads[pc]) {
        block_at[pc] = static_cast<int>(blocks_.size());
        blocks_.push_back({pc, pc, {}, {}, {}, {}, {}});
      }
      blocks_.back().end = pc + 1;
    }
    const size_t words = (registers_.size() + 63) / 64;
    for (Block& block : blocks_) {
      const Instruction& last = kernel_.code[block.end - 1];
      for (int target : Targets(last)) block.next.push_back(block_at[target]);
      if (!Ends(last) && block.end < count) block.next.push_back(block_at[block.end]);
      for (Bits* bits : {&block.use, &block.define, &block.live_in, &block.live_out}) bits->assign(words, 0);
      for (int pc = block.begin; pc < block.end; ++pc) {
        const Instruction& i = kernel_.code[pc];
        ForEach(i, [&](int r, bool write) {
          if (!write && !Get(block.define, r)) Set(block.use, r);
        });
        // A guarded write leaves the other lanes' values in place.
        if (i.guard != Instruction::kNoSlot) continue;
        ForEach(i, [&](int r, bool write) {
          if (write) Set(block.define, r);
        });
      }
    }
  }

  void FlowBackwards() {
    for (bool changed = true; changed;) {
      changed = false;
      for (size_t b = blocks_.size(); b-- > 0;) {
        Block& block = blocks_[b];
        for (size_t word = 0; word < block.live_in.size(); ++word) {
          uint64_t out = 0;
          for (int next : block.next) out |= blocks_[next].live_in[word];
          const uint64_t in = block.use[word] | (out & ~block.define[word]);
          changed |= in != block.live_in[word];
          block.live_in[word] = in;
          block.live_out[word] = out;
        }
      }
    }
  }

  void FindIntervals() {
    intervals_.assign(registers_.size(), {});
    for (const Block& block : blocks_) {
      for (int pc = block.begin; pc < block.end; ++pc) {
        ForEach(kernel_.code[pc], [&](int r, bool) { intervals_[r].Cover(pc); });
      }
      for (size_t r = 0; r < registers_.size(); ++r) {
        if (Get(block.live_in, static_cast<int>(r))) intervals_[r].Cover(block.begin);
        if (Get(block.live_out, static_cast<int>(r))) intervals_[r].Cover(block.end - 1);
      }
    }
  }

  // Linear scan over intervals by their beginning. A result never takes a slot that its own instruction still reads:
  // handlers may write one lane before they read the next.
  void Allocate() {
    moved_.assign(static_cast<size_t>(kernel_.slots), -1);
    for (size_t slot = 0; slot < register_at_.size(); ++slot) {
      const int r = register_at_[slot];
      if (r < 0 || pinned_[r]) moved_[slot] = next_slot_++;
    }
    std::vector<int> order;
    for (size_t r = 0; r < registers_.size(); ++r) {
      if (!pinned_[r] && intervals_[r].end >= 0) order.push_back(static_cast<int>(r));
    }
    std::sort(order.begin(), order.end(), [&](int a, int b) { return intervals_[a].begin < intervals_[b].begin; });
    std::multimap<int, int> active;            // by end
    std::map<int, std::vector<int32_t>> free;  // by size
    int live = 0;
    for (int r : order) {
      for (auto it = active.begin(); it != active.end() && it->first < intervals_[r].begin; it = active.erase(it)) {
        const RegisterSlots& done = registers_[it->second];
        free[done.count].push_back(moved_[done.first]);
        live -= done.predicate ? 0 : done.count;
      }
      const RegisterSlots& wanted = registers_[r];
      auto& candidates = free[wanted.count];
      int32_t slot = next_slot_;
      if (candidates.empty()) {
        next_slot_ += wanted.count;
      } else {
        slot = candidates.back();
        candidates.pop_back();
      }
      for (int s = 0; s < wanted.count; ++s) moved_[wanted.first + s] = slot + s;
      active.emplace(intervals_[r].end, r);
      live += wanted.predicate ? 0 : wanted.count;
      most_live_ = std::max(most_live_, live);
    }
    int pinned = 0;
    for (size_t r = 0; r < registers_.size(); ++r)
      pinned += pinned_[r] && !registers_[r].predicate ? registers_[r].count : 0;
    kernel_.info.registers = most_live_ + pinned;
  }

  int32_t Moved(int32_t slot) const {
    return slot >= 0 && slot < static_cast<int32_t>(moved_.size()) && moved_[slot] >= 0 ? moved_[slot]
           : slot < 0                                                                   ? slot
                                                                                        : 0;
  }

  void Rename() {
    for (Instruction& i : kernel_.code) {
      if (i.guard != Instruction::kNoSlot) i.guard = Moved(i.guard);
      for (int32_t& slot : i.operand) slot = Moved(slot);
    }
    for (auto& [list, count] : kernel_.operand_lists) {
      for (size_t s = 0; s < count; ++s) list[s] = Moved(list[s]);
    }
    for (int32_t& slot : kernel_.touched) slot = Moved(slot);
    for (WarpConstant& constant : kernel_.warp_constants) constant.slot = Moved(constant.slot);
    kernel_.slots = next_slot_;
  }

  Kernel& kernel_;
  const std::vector<RegisterSlots>& registers_;
  std::vector<int> register_at_;  // per slot
  std::vector<bool> pinned_;
  std::vector<Block> blocks_;
  std::vector<Interval> intervals_;
  std::vector<int32_t> moved_;
  int32_t next_slot_ = 0;
  int most_live_ = 0;
};

}  // namespace

void PackRegisters(Kernel* kernel, const std::vector<RegisterSlots>& registers) {
  for (const Instruction& i : kernel->code) {
    if (i.source->opcode.substr(0, 4) == "call") return;  // liveness across calls is not followed
  }
  Packer(kernel, registers).Run();
}

}  // namespace tessera::vgpu
