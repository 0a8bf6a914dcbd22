// shfl, vote, match, redux, activemask, elect, bar.warp: what lanes of a warp tell each other.
#include "tests/virtual_gpu/ptx/binder.h"

namespace tessera::vgpu {
namespace {

// Every named lane that still lives must be here. kWaitLanes until then.
Signal Gathered(const Warp& w, uint32_t lanes, uint32_t members) {
  return (members & w.live & ~lanes) == 0 ? Signal::kNext : Signal::kWaitLanes;
}

enum Mode : uint8_t { kUp, kDown, kBfly, kIdx };

// operand: result, value, b, c, members, predicate
template <Mode kMode>
Signal Shfl(const Instruction& i, Warp& w, uint32_t lanes) {
  const int first = __builtin_ctz(lanes);
  const Signal here = Gathered(w, lanes, w.Read(i.operand[4])[first]);
  if (here != Signal::kNext) return here;
  const uint32_t* value = w.Read(i.operand[1]);
  const uint32_t* b = w.Read(i.operand[2]);
  const uint32_t* c = w.Read(i.operand[3]);
  uint32_t out[kLanes], in_range[kLanes];
  uint32_t missing = 0;
  for (int l = 0; l < kLanes; ++l) {
    const int bound = static_cast<int>(c[l] & 31), segment = static_cast<int>(c[l] >> 8 & 31);
    const int max_lane = (l & segment) | (bound & ~segment), min_lane = l & segment;
    const int amount = static_cast<int>(b[l] & 31);
    int from = l;
    bool ok = true;
    if (kMode == kUp) ok = (from = l - amount) >= max_lane;
    if (kMode == kDown) ok = (from = l + amount) <= max_lane;
    if (kMode == kBfly) ok = (from = l ^ amount) <= max_lane;
    if (kMode == kIdx) ok = (from = min_lane | (amount & ~segment)) <= max_lane;
    if (!ok) from = l;
    missing |= static_cast<uint32_t>(((lanes >> l & 1) != 0) && (lanes >> from & 1) == 0) << l;
    out[l] = value[from];
    in_range[l] = ok ? ~0u : 0u;
  }
  if (missing != 0) {
    return w.Fail(i, FaultKind::kBarrier, __builtin_ctz(missing), "shfl reads a lane that does not take part");
  }
  Blend(w.Write(i.operand[0]), out, lanes);
  if (i.operand[5] != Instruction::kNoSlot) Blend(w.Write(i.operand[5]), in_range, lanes);
  return Signal::kNext;
}

void Broadcast(Warp& w, int32_t slot, uint32_t lanes, uint32_t value) {
  uint32_t* to = w.Write(slot);
  for (int l = 0; l < kLanes; ++l) to[l] = (lanes >> l & 1) != 0 ? value : to[l];
}

enum Vote : uint8_t { kAll, kAny, kUni, kBallot };
constexpr uint32_t kNegated = 1;

// operand: result, predicate, members
Signal VoteSync(const Instruction& i, Warp& w, uint32_t lanes) {
  const uint32_t members = w.Read(i.operand[2])[__builtin_ctz(lanes)];
  const Signal here = Gathered(w, lanes, members);
  if (here != Signal::kNext) return here;
  const uint32_t* predicate = w.Read(i.operand[1]);
  uint32_t yes = 0;
  for (int l = 0; l < kLanes; ++l)
    yes |= static_cast<uint32_t>((predicate[l] != 0) != ((i.flags & kNegated) != 0)) << l;
  const uint32_t voters = lanes & members;
  yes &= voters;
  const bool all = yes == voters, any = yes != 0;
  const uint32_t result = i.small == kBallot ? yes
                          : (i.small == kAll   ? all
                             : i.small == kAny ? any
                                               : all || !any)
                              ? ~0u
                              : 0u;
  Broadcast(w, i.operand[0], lanes, result);
  return Signal::kNext;
}

// match.any: lanes with the same value; match.all: the members if all agree. operand: result, value, members, predicate
template <class T>
Signal Match(const Instruction& i, Warp& w, uint32_t lanes) {
  const uint32_t members = w.Read(i.operand[2])[__builtin_ctz(lanes)];
  const Signal here = Gathered(w, lanes, members);
  if (here != Signal::kNext) return here;
  const T* value = w.Read<T>(i.operand[1]);
  uint32_t out[kLanes] = {};
  bool all = true;
  for (int l = 0; l < kLanes; ++l) {
    for (int o = 0; o < kLanes; ++o) {
      if ((lanes >> o & 1) != 0 && value[o] == value[l]) out[l] |= 1u << o;
    }
    if ((lanes >> l & 1) != 0) all &= out[l] == lanes;
  }
  if (i.small != 0) {
    Broadcast(w, i.operand[0], lanes, all ? lanes : 0);
    if (i.operand[3] != Instruction::kNoSlot) Broadcast(w, i.operand[3], lanes, all ? ~0u : 0u);
  } else {
    Blend(w.Write(i.operand[0]), out, lanes);
  }
  return Signal::kNext;
}

enum Reduction : uint8_t { kAdd, kMin, kMax, kAnd, kOr, kXor };

template <class T>
Signal Redux(const Instruction& i, Warp& w, uint32_t lanes) {
  const Signal here = Gathered(w, lanes, w.Read(i.operand[2])[__builtin_ctz(lanes)]);
  if (here != Signal::kNext) return here;
  const uint32_t* value = w.Read(i.operand[1]);
  bool first = true;
  T total{};
  for (int l = 0; l < kLanes; ++l) {
    if ((lanes >> l & 1) == 0) continue;
    const T v = static_cast<T>(value[l]);
    if (first) {
      total = v;
      first = false;
      continue;
    }
    switch (i.small) {
      case kAdd:
        total = static_cast<T>(static_cast<uint32_t>(total) + static_cast<uint32_t>(v));
        break;
      case kMin:
        total = v < total ? v : total;
        break;
      case kMax:
        total = v > total ? v : total;
        break;
      case kAnd:
        total &= v;
        break;
      case kOr:
        total |= v;
        break;
      default:
        total ^= v;
    }
  }
  Broadcast(w, i.operand[0], lanes, static_cast<uint32_t>(total));
  return Signal::kNext;
}

Signal ActiveMask(const Instruction& i, Warp& w, uint32_t lanes) {
  Broadcast(w, i.operand[0], lanes, lanes);
  return Signal::kNext;
}

// The lowest lane of the members is elected. operand: leader, predicate, members
Signal Elect(const Instruction& i, Warp& w, uint32_t lanes) {
  const uint32_t members = w.Read(i.operand[2])[__builtin_ctz(lanes)];
  const Signal here = Gathered(w, lanes, members);
  if (here != Signal::kNext) return here;
  const uint32_t leader = static_cast<uint32_t>(__builtin_ctz(members & lanes));
  Broadcast(w, i.operand[0], lanes, leader);
  uint32_t* predicate = w.Write(i.operand[1]);
  for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
    const uint32_t l = static_cast<uint32_t>(__builtin_ctz(rest));
    predicate[l] = l == leader ? ~0u : 0u;
  }
  return Signal::kNext;
}

// Orders the memory accesses of its lanes: the one instruction besides barriers that does.
Signal WarpSync(const Instruction& i, Warp& w, uint32_t lanes) {
  const Signal here = Gathered(w, lanes, w.Read(i.operand[0])[__builtin_ctz(lanes)]);
  if (here == Signal::kNext) w.Tick();
  return here;
}

Handler BindShfl(Binder& b) {
  if (b.Part(1) != "sync" || b.Operands() != 5) return nullptr;
  Instruction& out = b.out();
  const Operand& result = b.At(0);
  const bool pair = result.kind == Operand::kPair && result.parts.size() == 2;
  out.operand[0] = b.Destination(pair ? result.parts[0] : result, 32);
  out.operand[5] = pair ? b.Destination(result.parts[1], 1) : Instruction::kNoSlot;
  for (int s = 1; s <= 4; ++s) out.operand[s] = b.Source(b.At(s), 32);
  const std::string_view mode = b.Part(2);
  if (mode == "up") return &Shfl<kUp>;
  if (mode == "down") return &Shfl<kDown>;
  if (mode == "bfly") return &Shfl<kBfly>;
  return mode == "idx" ? &Shfl<kIdx> : nullptr;
}

Handler BindVote(Binder& b) {
  if (b.Part(1) != "sync" || b.Operands() != 3) return nullptr;
  Instruction& out = b.out();
  const std::string_view mode = b.Part(2);
  out.small = mode == "all" ? kAll : mode == "any" ? kAny : mode == "uni" ? kUni : kBallot;
  Operand predicate = b.At(1);
  if (predicate.negated) out.flags = kNegated;
  predicate.negated = false;
  out.operand[0] = b.Destination(b.At(0), mode == "ballot" ? 32 : 1);
  out.operand[1] = b.Source(predicate, 1);
  out.operand[2] = b.Source(b.At(2), 32);
  return &VoteSync;
}

Handler BindMatch(Binder& b) {
  if (b.Operands() != 3) return nullptr;
  Instruction& out = b.out();
  const bool all = b.Part(1) == "all", pair = b.At(0).kind == Operand::kPair;
  const int bits = Bits(b.LastType() == Type::kNone ? ParseType(b.Part(3)) : b.LastType());
  out.operand[0] = b.Destination(pair ? b.At(0).parts[0] : b.At(0), 32);
  out.operand[3] = pair ? b.Destination(b.At(0).parts[1], 1) : Instruction::kNoSlot;
  out.operand[1] = b.Source(b.At(1), bits);
  out.operand[2] = b.Source(b.At(2), 32);
  out.small = all;
  return bits == 64 ? &Match<uint64_t> : bits == 32 ? &Match<uint32_t> : nullptr;
}

Handler BindRedux(Binder& b) {
  if (b.Operands() != 3) return nullptr;
  b.Bind({32, 32, 32});
  constexpr std::string_view kNames[] = {"add", "min", "max", "and", "or", "xor"};
  for (uint8_t r = kAdd; r <= kXor; ++r) {
    if (b.Part(2) != kNames[r]) continue;
    b.out().small = r;
    return b.LastType() == Type::kS32 ? &Redux<int32_t> : IsFloat(b.LastType()) ? nullptr : &Redux<uint32_t>;
  }
  return nullptr;
}

}  // namespace

Handler BindShuffle(Binder& b) {
  const std::string_view name = b.Part(0);
  Instruction& out = b.out();
  out.kind = InstructionClass::kShuffle;
  if (name == "shfl") return BindShfl(b);
  if (name == "vote") return BindVote(b);
  if (name == "match") return BindMatch(b);
  if (name == "redux") return BindRedux(b);
  if (name == "activemask" && b.Operands() == 1) {
    out.operand[0] = b.Destination(b.At(0), 32);
    return &ActiveMask;
  }
  if (name == "elect" && b.Operands() == 2 && b.At(0).kind == Operand::kPair && b.At(0).parts.size() == 2) {
    out.operand[0] = b.Destination(b.At(0).parts[0], 32);
    out.operand[1] = b.Destination(b.At(0).parts[1], 1);
    out.operand[2] = b.Source(b.At(1), 32);
    return &Elect;
  }
  if ((name == "bar" || name == "barrier") && b.Part(1) == "warp" && b.Operands() == 1) {
    out.kind = InstructionClass::kBarrier;
    out.operand[0] = b.Source(b.At(0), 32);
    return &WarpSync;
  }
  return nullptr;
}

}  // namespace tessera::vgpu
