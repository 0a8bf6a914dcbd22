// Launches: what a driver would refuse, and blocks shared out over worker threads.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <mutex>
#include <thread>

#include "tests/virtual_gpu/ptx/async_copies.h"
#include "tests/virtual_gpu/ptx/bulk_copies.h"
#include "tests/virtual_gpu/ptx/matrix_queue.h"
#include "tests/virtual_gpu/ptx/mbarrier_table.h"
#include "tests/virtual_gpu/ptx/schedule.h"
#include "tests/virtual_gpu/ptx/shared_shadow.h"

namespace tessera::vgpu {
namespace {

constexpr uint32_t kMaxThreads = 1024;
constexpr uint32_t kMaxShared = 227 * 1024;  // of a block on compute capability 9.0
constexpr uint32_t kMaxCluster = 16;
constexpr size_t kParameterAlign = 128;     // more than the 64 of a tensor map
constexpr uint32_t kClockLimit = 1u << 27;  // stamps of reads keep 28 bits

std::optional<std::string> Refusal(const Launch& launch) {
  const KernelInfo& info = launch.kernel->info;
  const auto dim = [](const Dim3& d) {
    return "(" + std::to_string(d.x) + ", " + std::to_string(d.y) + ", " + std::to_string(d.z) + ")";
  };
  const uint64_t threads = launch.block.Count();
  const uint32_t most = std::min(info.max_threads, kMaxThreads);
  if (threads == 0 || threads > most) {
    return "block " + dim(launch.block) + " has " + std::to_string(threads) + " threads; allowed: 1 to " +
           std::to_string(most);
  }
  if (launch.grid.Count() == 0 || launch.grid.y > 65535 || launch.grid.z > 65535) {
    return "grid " + dim(launch.grid) + "; allowed: 1 and more, at most 65535 in y and z";
  }
  const Dim3& c = launch.cluster;
  if (c.Count() == 0 || c.Count() > kMaxCluster || launch.grid.x % c.x != 0 || launch.grid.y % c.y != 0 ||
      launch.grid.z % c.z != 0) {
    return "cluster " + dim(c) + " of grid " + dim(launch.grid) + "; allowed: 1 to 16 blocks that divide the grid";
  }
  if (launch.parameters.size() != info.parameter_block_bytes) {
    return std::to_string(launch.parameters.size()) + " bytes of parameters; the kernel has " +
           std::to_string(info.parameter_block_bytes);
  }
  const uint64_t shared = uint64_t{info.static_shared_bytes} + launch.dynamic_shared_bytes;
  if (shared > kMaxShared) {
    return std::to_string(shared) + " bytes of shared memory; allowed: " + std::to_string(kMaxShared);
  }
  return std::nullopt;
}

uint64_t ConstantValue(const WarpConstant& constant, const Warp& warp, int lane) {
  using C = WarpConstant;
  const Block& block = *warp.block;
  const Launch& launch = *block.run->launch;
  const uint32_t thread = warp.index * kLanes + lane;
  const Dim3& shape = launch.cluster;
  const Dim3 in{block.index.x % shape.x, block.index.y % shape.y, block.index.z % shape.z};
  const uint32_t bit = 1u << lane;
  switch (constant.kind) {
    case C::kTidX:
      return thread % launch.block.x;
    case C::kTidY:
      return thread / launch.block.x % launch.block.y;
    case C::kTidZ:
      return thread / launch.block.x / launch.block.y;
    case C::kNtidX:
      return launch.block.x;
    case C::kNtidY:
      return launch.block.y;
    case C::kNtidZ:
      return launch.block.z;
    case C::kCtaX:
      return block.index.x;
    case C::kCtaY:
      return block.index.y;
    case C::kCtaZ:
      return block.index.z;
    case C::kNctaX:
      return launch.grid.x;
    case C::kNctaY:
      return launch.grid.y;
    case C::kNctaZ:
      return launch.grid.z;
    case C::kLane:
      return lane;
    case C::kWarp:
      return warp.index;
    case C::kWarps:
      return block.warps.size();
    case C::kLanesEq:
      return bit;
    case C::kLanesLt:
      return bit - 1;
    case C::kLanesLe:
      return bit | (bit - 1);
    case C::kLanesGt:
      return ~(bit | (bit - 1));
    case C::kLanesGe:
      return ~(bit - 1);
    case C::kClusterX:
      return block.index.x / shape.x;
    case C::kClusterY:
      return block.index.y / shape.y;
    case C::kClusterZ:
      return block.index.z / shape.z;
    case C::kClustersX:
      return launch.grid.x / shape.x;
    case C::kClustersY:
      return launch.grid.y / shape.y;
    case C::kClustersZ:
      return launch.grid.z / shape.z;
    case C::kClusterCtaX:
      return in.x;
    case C::kClusterCtaY:
      return in.y;
    case C::kClusterCtaZ:
      return in.z;
    case C::kClusterNctaX:
      return shape.x;
    case C::kClusterNctaY:
      return shape.y;
    case C::kClusterNctaZ:
      return shape.z;
    case C::kClusterCtaRank:
      return block.rank;
    case C::kClusterNctaRank:
      return shape.Count();
    case C::kIsExplicitCluster:
      return shape.Count() > 1 ? 1 : 0;
    case C::kSmId:
      return 0;
    case C::kSmCount:
      return 1;
    case C::kGridId:
      return 0;
    case C::kTotalShared:
      return block.shared_bytes;
    case C::kDynamicShared:
      return launch.dynamic_shared_bytes;
    case C::kParameterAddress:
      return reinterpret_cast<uint64_t>(block.run->parameters) + constant.offset;
    case C::kLocalAddress:
      return reinterpret_cast<uint64_t>(block.local.data()) + thread * block.run->kernel->local_bytes + constant.offset;
  }
  return 0;
}

// The blocks of one cluster at a time; buffers are reused from cluster to cluster.
class Worker {
 public:
  Worker(const Launch& launch, const AddressSpace& memory) {
    run_.launch = &launch;
    run_.kernel = launch.kernel;
    run_.memory = &memory;
    run_.ranges = memory.Current();
    parameters_ = std::make_unique<std::byte[]>(launch.parameters.size() + kParameterAlign);
    const uint64_t at = reinterpret_cast<uint64_t>(parameters_.get());
    run_.parameters = parameters_.get() + (kParameterAlign - at % kParameterAlign) % kParameterAlign;
    std::copy(launch.parameters.begin(), launch.parameters.end(), run_.parameters);
    run_.executed.assign(launch.kernel->code.size(), 0);
    const uint32_t blocks = static_cast<uint32_t>(launch.cluster.Count());
    const uint32_t warps = static_cast<uint32_t>((launch.block.Count() + kLanes - 1) / kLanes);
    cluster_.shape = launch.cluster;
    cluster_.agents = blocks * (warps + 1);
    cluster_.bulk = std::make_unique<BulkCopies>();
    slots_ = std::make_unique<Slot[]>(size_t{blocks} * warps * launch.kernel->slots);
    for (uint32_t b = 0; b < blocks; ++b) {
      auto block = std::make_unique<Block>();
      block->run = &run_;
      block->cluster = &cluster_;
      block->rank = b;
      block->shared_bytes = launch.kernel->info.static_shared_bytes + launch.dynamic_shared_bytes;
      block->shared_storage = std::make_unique<std::byte[]>(block->shared_bytes + 2 * kSharedBase);
      const uint64_t raw = reinterpret_cast<uint64_t>(block->shared_storage.get());
      block->shared = block->shared_storage.get() + (kSharedBase - raw % kSharedBase) % kSharedBase;
      block->local.resize(launch.kernel->local_bytes * warps * kLanes);
      if (launch.check_shared)
        block->shadow = std::make_unique<SharedShadow>(block->shared_bytes, cluster_.agents, warps + 1);
      block->mbarriers = std::make_unique<MbarrierTable>();
      block->warps.resize(warps);
      for (uint32_t i = 0; i < warps; ++i) {
        Warp& warp = block->warps[i];
        warp.block = block.get();
        warp.index = i;
        warp.agent = b * (warps + 1) + i;
        warp.slots = slots_.get() + (size_t{b} * warps + i) * launch.kernel->slots;
        warp.constants = launch.kernel->constants.data();
        warp.lane_target.resize(kLanes);
        warp.copies = std::make_unique<AsyncCopies>();
        warp.matrices = std::make_unique<MatrixQueue>();
      }
      cluster_.blocks.push_back(std::move(block));
    }
  }

  // False: fault() says why.
  bool RunOne(uint64_t number) {
    const Launch& launch = *run_.launch;
    const uint64_t across = launch.grid.x / cluster_.shape.x, down = launch.grid.y / cluster_.shape.y;
    const Dim3 at{static_cast<uint32_t>(number % across), static_cast<uint32_t>(number / across % down),
                  static_cast<uint32_t>(number / across / down)};
    cluster_.index = at;
    *cluster_.bulk = BulkCopies{};
    cluster_.bulk->groups.resize(cluster_.agents);
    cluster_.arrived.assign(cluster_.agents, false);
    cluster_.phase = 0;
    cluster_.arriving.assign(cluster_.agents, 0);
    cluster_.completed.assign(cluster_.agents, 0);
    cluster_.fenced_by_self.assign(cluster_.agents, run_.clock_base);
    for (auto& block : cluster_.blocks) cluster_.fenced_by_self[block->warps.back().agent + 1] = ~0u;
    if (run_.clock_base > kClockLimit) {
      run_.clock_base = 0;
      for (auto& block : cluster_.blocks) {
        if (block->shadow != nullptr) block->shadow->Clear();
      }
    }
    for (auto& block : cluster_.blocks) ResetBlock(*block);
    run_.counters.blocks += cluster_.blocks.size();
    const bool done = RunCluster(run_, cluster_);
    for (auto& block : cluster_.blocks) {
      run_.clock_base = std::max(run_.clock_base, block->async_clock);
      for (Warp& warp : block->warps) {
        for (uint32_t c : warp.clock) run_.clock_base = std::max(run_.clock_base, c);
      }
    }
    return done;
  }

  const std::optional<Fault>& fault() const { return run_.fault; }

  Counters Total() const {
    Counters total = run_.counters;
    for (size_t i = 0; i < run_.executed.size(); ++i) {
      const Instruction& instruction = run_.kernel->code[i];
      total.instructions[static_cast<size_t>(instruction.kind)] += run_.executed[i];
      total.tensor_flops += run_.executed[i] * instruction.tensor_flops;
    }
    return total;
  }

 private:
  void ResetBlock(Block& block) {
    const Launch& launch = *run_.launch;
    const Dim3& shape = cluster_.shape;
    block.index = {cluster_.index.x * shape.x + block.rank % shape.x,
                   cluster_.index.y * shape.y + block.rank / shape.x % shape.y,
                   cluster_.index.z * shape.z + block.rank / shape.x / shape.y};
    // NaN in every floating-point type: whoever reads what was never written sees it in the result.
    std::memset(block.shared, 0xff, block.shared_bytes);
    block.barriers.fill(Barrier{});
    *block.mbarriers = MbarrierTable{};
    block.async_clock = run_.clock_base;
    block.jumps = 0;
    block.wakeups = 0;
    const uint64_t threads = launch.block.Count();
    for (Warp& warp : block.warps) {
      const uint64_t left = threads - uint64_t{warp.index} * kLanes;
      warp.live = left >= kLanes ? kAllLanes : (1u << left) - 1;
      warp.paths.assign(1, Path{});
      warp.paths[0].lanes = warp.live;
      warp.clock.assign(cluster_.agents, run_.clock_base);
      warp.Tick();
      warp.fenced.assign(cluster_.agents, run_.clock_base);
      warp.cluster_phase = 0;
      *warp.copies = AsyncCopies{};
      *warp.matrices = MatrixQueue{};
      warp.matrices_in_flight = false;
      for (const WarpConstant& constant : run_.kernel->warp_constants) {
        for (int l = 0; l < kLanes; ++l) {
          const uint64_t value = ConstantValue(constant, warp, l);
          if (constant.bits == 64) {
            warp.Write<uint64_t>(constant.slot)[l] = value;
          } else {
            warp.Write(constant.slot)[l] = static_cast<uint32_t>(value);
          }
        }
      }
    }
  }

  Execution run_;
  Cluster cluster_;
  std::unique_ptr<Slot[]> slots_;
  std::unique_ptr<std::byte[]> parameters_;
};

}  // namespace

std::optional<Fault> Run(const Launch& launch, const AddressSpace& memory, Counters* counters, int workers) {
  if (const auto refusal = Refusal(launch)) {
    return Fault{FaultKind::kBadLaunch, launch.kernel->info.name + ": " + *refusal};
  }
  const uint64_t clusters = launch.grid.Count() / launch.cluster.Count();
  std::atomic<uint64_t> next{0};
  std::mutex mutex;
  std::optional<Fault> fault;
  Counters total;
  const auto work = [&] {
    Worker worker(launch, memory);
    for (uint64_t number; (number = next.fetch_add(1)) < clusters;) {
      if (worker.RunOne(number)) continue;
      next = clusters;  // the others finish the block they are in
      std::lock_guard lock(mutex);
      if (!fault) fault = worker.fault();
    }
    std::lock_guard lock(mutex);
    total += worker.Total();
  };
  std::vector<std::thread> others;
  const int wanted = static_cast<int>(std::min<uint64_t>(std::max(workers, 1), clusters));
  for (int i = 1; i < wanted; ++i) others.emplace_back(work);
  work();
  for (std::thread& thread : others) thread.join();
  if (counters != nullptr) *counters += total;
  return fault;
}

}  // namespace tessera::vgpu
