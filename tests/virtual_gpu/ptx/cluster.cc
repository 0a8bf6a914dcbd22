// Clusters and fences: mapa, getctarank, barrier.cluster, fence.
#include "tests/virtual_gpu/ptx/binder.h"

namespace tessera::vgpu {
namespace {

constexpr int kRankShift = 24;

uint32_t RankOf(const Block& block, uint32_t address) {
  return address >> kRankShift == 0 ? block.rank : (address >> kRankShift) - 1;
}

// operand: result, address, rank
Signal Mapa(const Instruction& i, Warp& w, uint32_t lanes) {
  for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
    const int l = __builtin_ctz(rest);
    const uint32_t rank = w.Read(i.operand[2])[l];
    const auto& blocks = w.block->cluster->blocks;
    if (rank >= blocks.size()) {
      return w.Fail(i, FaultKind::kOutOfBounds, l,
                    "rank " + std::to_string(rank) + " in a cluster of " + std::to_string(blocks.size()) + " blocks");
    }
    if (i.small != 0) {  // generic
      const uint64_t offset = w.Read<uint64_t>(i.operand[1])[l] - reinterpret_cast<uint64_t>(w.block->shared);
      w.Write<uint64_t>(i.operand[0])[l] = reinterpret_cast<uint64_t>(blocks[rank]->shared) + offset;
    } else {
      w.Write(i.operand[0])[l] = (rank + 1) << kRankShift | (w.Read(i.operand[1])[l] & ((1u << kRankShift) - 1));
    }
  }
  return Signal::kNext;
}

Signal GetCtaRank(const Instruction& i, Warp& w, uint32_t lanes) {
  for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
    const int l = __builtin_ctz(rest);
    w.Write(i.operand[0])[l] = RankOf(*w.block, w.Read(i.operand[1])[l]);
  }
  return Signal::kNext;
}

Signal ClusterArrive(const Instruction& i, Warp& w, uint32_t lanes) {
  if (lanes != w.live) return Signal::kWaitLanes;
  Cluster& cluster = *w.block->cluster;
  if (cluster.arrived[w.agent]) {
    return w.Fail(i, FaultKind::kBarrier, -1, "the warp arrives at barrier.cluster twice without waiting");
  }
  cluster.arrived[w.agent] = true;
  w.cluster_phase = cluster.phase;
  Join(cluster.arriving, w.clock);
  w.Tick();
  bool all = true;
  for (const auto& block : cluster.blocks) {
    for (const Warp& warp : block->warps) all &= warp.live == 0 || cluster.arrived[warp.agent];
  }
  if (!all) return Signal::kNext;
  ++cluster.phase;
  cluster.completed = cluster.arriving;
  std::fill(cluster.arriving.begin(), cluster.arriving.end(), 0);
  cluster.arrived.assign(cluster.agents, false);
  for (auto& block : cluster.blocks) ++block->wakeups;
  return Signal::kNext;
}

Signal ClusterWait(const Instruction&, Warp& w, uint32_t lanes) {
  if (lanes != w.live) return Signal::kWaitLanes;
  const Cluster& cluster = *w.block->cluster;
  if (cluster.phase == w.cluster_phase) return Signal::kRetry;
  Join(w.clock, cluster.completed);
  w.Tick();
  return Signal::kNext;
}

Signal Fence(const Instruction&, Warp&, uint32_t) {
  return Signal::kNext;
}

// Generic writes that are ordered before this point may be read by the asynchronous proxy.
Signal ProxyFence(const Instruction&, Warp& w, uint32_t) {
  Join(w.fenced, w.clock);
  w.block->cluster->fenced_by_self[w.agent] = w.clock[w.agent];
  w.Tick();
  return Signal::kNext;
}

}  // namespace

Handler BindCluster(Binder& b) {
  Instruction& out = b.out();
  out.kind = InstructionClass::kBarrier;
  const std::string_view name = b.Part(0);
  if (name == "mapa" && b.Operands() == 3) {
    out.kind = InstructionClass::kInteger;
    const bool shared = b.Has("shared::cluster");
    const int bits = shared ? 32 : 64;
    if (Bits(b.LastType()) != bits) return nullptr;
    out.small = !shared;
    return b.Bind({bits, bits, 32}) ? &Mapa : nullptr;
  }
  if (name == "getctarank" && b.Has("shared::cluster")) return b.Bind({32, 32}) ? &GetCtaRank : nullptr;
  if (name == "barrier" && b.Part(1) == "cluster") {
    if (b.Has("arrive")) return &ClusterArrive;
    return b.Has("wait") ? &ClusterWait : nullptr;
  }
  if (name == "fence" || name == "membar") {
    return b.Part(1) == "proxy" && b.Part(2).substr(0, 5) == "async" ? &ProxyFence : &Fence;
  }
  return nullptr;
}

}  // namespace tessera::vgpu
