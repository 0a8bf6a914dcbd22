// A kernel ready to run: every instruction is a handler with its operands as positions in a register file.
#pragma once

#include <array>
#include <climits>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "tests/virtual_gpu/ptx/machine.h"
#include "tests/virtual_gpu/ptx/syntax.h"

namespace tessera::vgpu {

constexpr int kLanes = 32;
constexpr uint32_t kAllLanes = ~0u;

// 32 lanes of 32 bits. Registers of up to 32 bits take one slot (16 bits zero-extended; predicates are 0 or ~0),
// 64-bit registers two slots holding uint64_t[32], 128-bit registers four.
struct alignas(64) Slot {
  uint32_t lane[kLanes];
};

struct Instruction;
struct Warp;

enum class Signal : uint8_t {
  kNext,
  kBranch,     // the lanes go to instruction.target, the others on
  kScatter,    // each lane goes to warp.lane_target
  kCall,       // the lanes enter target
  kReturn,     // the lanes leave their function, or end
  kExit,       // the lanes end
  kWaitLanes,  // not executed: other lanes of this warp must come here first
  kWaitBlock,  // executed: the path sleeps until the block wakes it
  kRetry,      // not executed: try again once the block's state has changed
  kYield,      // executed: let the other warps run
  kFault,      // warp.block->fault says what
};

// `lanes` is never empty: the lanes that are here and whose guard holds.
using Handler = Signal (*)(const Instruction& instruction, Warp& warp, uint32_t lanes);

struct Instruction {
  static constexpr int32_t kNoSlot = INT32_MIN;

  Handler handler = nullptr;
  int32_t guard = kNoSlot;  // a predicate's slot
  bool guard_negated = false;
  uint8_t operand_count = 0;
  InstructionClass kind = InstructionClass::kMove;
  uint8_t small = 0;      // the handler's own
  uint32_t flags = 0;     // the handler's own
  int64_t immediate = 0;  // address offset, or the handler's own
  int32_t target = -1;    // instruction number, of branches
  uint32_t tensor_flops = 0;
  // Register slots it reads, then those it writes: kernel.touched from here on.
  uint32_t touched = 0;
  uint16_t reads = 0, writes = 0;
  const Statement* source = nullptr;
  // Slots: >= 0 in the warp's register file, < 0 is ~index into the kernel's constants. The first is the result.
  std::array<int32_t, 6> operand{};
  const int32_t* more = nullptr;  // all operands, where six are too few
};

// A value that is fixed for a warp and kept in a slot: %tid.x, %ctaid.y, the address of a parameter, a local frame.
struct WarpConstant {
  enum Kind {
    kTidX,
    kTidY,
    kTidZ,
    kNtidX,
    kNtidY,
    kNtidZ,
    kCtaX,
    kCtaY,
    kCtaZ,
    kNctaX,
    kNctaY,
    kNctaZ,
    kLane,
    kWarp,
    kWarps,
    kLanesEq,
    kLanesLt,
    kLanesLe,
    kLanesGt,
    kLanesGe,
    kClusterX,
    kClusterY,
    kClusterZ,
    kClustersX,
    kClustersY,
    kClustersZ,
    kClusterCtaX,
    kClusterCtaY,
    kClusterCtaZ,
    kClusterNctaX,
    kClusterNctaY,
    kClusterNctaZ,
    kClusterCtaRank,
    kClusterNctaRank,
    kIsExplicitCluster,
    kSmId,
    kSmCount,
    kGridId,
    kTotalShared,
    kDynamicShared,
    kParameterAddress,  // 64 bits: + offset
    kLocalAddress,      // 64 bits: this lane's frame + offset
  };
  Kind kind;
  uint64_t offset = 0;
  int bits = 32;  // of the register that holds it
  int32_t slot = 0;
};

// Shared memory is a window that begins at this address, so that null is no valid shared address and 1024-byte
// alignment within the window is alignment of the address.
constexpr uint32_t kSharedBase = 1024;

class Kernel {
 public:
  KernelInfo info;
  std::vector<Instruction> code;
  std::vector<Slot> constants;
  std::vector<WarpConstant> warp_constants;
  int32_t slots = 0;                                                         // of a warp's register file
  uint64_t local_bytes = 0;                                                  // per thread
  std::vector<std::pair<std::unique_ptr<int32_t[]>, size_t>> operand_lists;  // with their lengths
  std::vector<std::vector<int32_t>> branch_tables;                           // of brx.idx
  std::vector<int32_t> touched;                                              // slots of all instructions
  std::vector<Range> globals;  // the module's variables, sorted: always accessible
  const Module::Contents* module = nullptr;
};

}  // namespace tessera::vgpu
