// A cluster's warps in turn, until all have ended. When nobody can go on, an asynchronous copy is delivered: copies are
// as late as they can be, so code that does not wait for them reads what was there before.
#include <algorithm>

#include "tests/virtual_gpu/ptx/bulk_copies.h"
#include "tests/virtual_gpu/ptx/mbarrier_table.h"
#include "tests/virtual_gpu/ptx/schedule.h"
#include "tests/virtual_gpu/ptx/text.h"

namespace tessera::vgpu {
namespace {

// Rounds in which warps only polled before a copy is delivered to them, and before they count as stuck.
constexpr int kIdleBeforeDelivery = 4;
constexpr int kIdleBeforeFault = 20000;
constexpr int kListed = 12;

}  // namespace

std::string WhereEverybodyWaits(const Execution& run, const Cluster& cluster) {
  std::string text;
  int listed = 0, more = 0;
  for (const auto& block : cluster.blocks) {
    for (const Warp& warp : block->warps) {
      for (const Path& path : warp.paths) {
        if (++listed > kListed) {
          ++more;
          continue;
        }
        // A path in a barrier has its program counter after it.
        const Instruction& i = run.kernel->code[path.in_barrier ? path.pc - 1 : path.pc];
        text += "\n  ";
        if (cluster.blocks.size() > 1) text += "block " + std::to_string(block->rank) + " of the cluster, ";
        text += "warp " + std::to_string(warp.index) + " lanes " + Hex(path.lanes) + " at line " +
                std::to_string(i.source->line) + " `" + i.source->text + "`";
        const Mbarrier* barrier = nullptr;
        if (path.state == Path::kAsleep && !path.in_barrier) barrier = block->mbarriers->Find(path.waits_for);
        if (barrier != nullptr && i.source->opcode.substr(0, 8) == "mbarrier") text += ", " + Missing(*barrier);
        if (path.state == Path::kLanes) text += ", waiting for other lanes of the warp";
      }
    }
  }
  if (more > 0) text += "\n  and " + std::to_string(more) + " more";
  return text;
}

bool RunCluster(Execution& run, Cluster& cluster) {
  int idle = 0;
  for (;;) {
    bool worked = false, alive = false, polled = false;
    for (auto& block : cluster.blocks) {
      for (Warp& warp : block->warps) {
        if (warp.live == 0) continue;
        alive = true;
        const Turn turn = RunWarp(warp);
        if (turn == Turn::kFault) return false;
        worked |= turn == Turn::kWorked;
        polled |= turn == Turn::kIdle;
      }
      if (block->jumps > run.launch->jump_limit) {
        run.fault = Fault{FaultKind::kNoProgress, run.kernel->info.name + ": a block has taken " +
                                                      std::to_string(block->jumps) + " branches without end; it is at" +
                                                      WhereEverybodyWaits(run, cluster)};
        return false;
      }
    }
    if (!alive) return EndOfBulkCopies(run, cluster);
    idle = worked ? 0 : idle + 1;
    if (worked || (polled && idle < kIdleBeforeDelivery)) continue;
    if (DeliverBulkCopy(run, cluster)) continue;
    if (run.fault) return false;
    if (polled && idle < kIdleBeforeFault) continue;
    bool diverged = false;
    for (const auto& block : cluster.blocks) {
      for (const Warp& warp : block->warps) {
        for (const Path& path : warp.paths) diverged |= path.state == Path::kLanes;
      }
    }
    const Dim3& first = cluster.blocks[0]->index;
    const std::string where = run.kernel->info.name + ", block (" + std::to_string(first.x) + ", " +
                              std::to_string(first.y) + ", " + std::to_string(first.z) + "): ";
    run.fault = Fault{diverged ? FaultKind::kBarrier : FaultKind::kNoProgress,
                      where +
                          (diverged ? "lanes of a warp wait for lanes that never come; everybody waits:"
                                    : "no warp can ever go on; everybody waits:") +
                          WhereEverybodyWaits(run, cluster)};
    return false;
  }
}

}  // namespace tessera::vgpu
