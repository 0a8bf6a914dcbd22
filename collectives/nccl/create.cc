// Making NCCL communicators: agreement of all ranks before NCCL is asked, and after.
#include <nccl.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "collectives/agreement.h"
#include "collectives/host_identity.h"
#include "collectives/nccl/communicator.h"
#include "collectives/nccl/error.h"
#include "collectives/nccl/nccl_communicator.h"
#include "runtime/device/cuda/placement.h"

namespace tessera {
namespace {

// ncclCommFinalize and non-blocking communicators came with 2.14; from 2.18 on a non-blocking communicator may be
// aborted while it initialises.
constexpr int kOldestVersion = 21800;
constexpr int kSharedGpuVersion = 23000;

// What the ranks must agree about.
struct Facts {
  int version = 0;
  ComputeCapability capability;
  std::array<uint8_t, 16> uuid{};
};

std::string VersionText(int version) {
  return absl::StrFormat("%d.%d.%d", version / 10000, version / 100 % 100, version % 100);
}

StatusOr<Facts> FactsHere(const CudaDevice& device) {
  Facts facts;
  TESSERA_RETURN_IF_ERROR(internal::NcclStatus(ncclGetVersion(&facts.version), "ncclGetVersion"));
  if (facts.version < kOldestVersion) {
    return absl::FailedPreconditionError(
        absl::StrCat("NCCL ", VersionText(facts.version), " is too old: Tessera needs ", VersionText(kOldestVersion)));
  }
  facts.capability = device.capability();
  facts.uuid = device.uuid();
  return facts;
}

// The same verdict on every rank.
Status CheckFacts(const std::vector<Facts>& facts, bool may_share_gpu) {
  const int version = facts[0].version;
  for (size_t r = 1; r < facts.size(); ++r) {
    if (facts[r].version != version) {
      return absl::FailedPreconditionError(absl::StrCat("rank 0 has NCCL ", VersionText(version), ", but rank ", r,
                                                        " has ", VersionText(facts[r].version)));
    }
    if (facts[r].capability != facts[0].capability) {
      return absl::FailedPreconditionError(
          absl::StrCat("rank 0 has a GPU of compute capability ", facts[0].capability.ToString(), ", but rank ", r,
                       " has ", facts[r].capability.ToString(), ": ranks would round differently"));
    }
    for (size_t other = 0; other < r; ++other) {
      if (facts[other].uuid != facts[r].uuid) continue;
      const std::string shared = absl::StrCat("ranks ", other, " and ", r, " are on the same GPU, ");
      if (version < kSharedGpuVersion) {
        return absl::FailedPreconditionError(absl::StrCat(shared, "which NCCL ", VersionText(version), " cannot do: ",
                                                          VersionText(kSharedGpuVersion), " or later can"));
      }
      if (!may_share_gpu) {
        return absl::FailedPreconditionError(
            absl::StrCat(shared, "which is not allowed; set may_share_gpu, and NCCL_MULTI_RANK_GPU_ENABLE=1 for NCCL"));
      }
    }
  }
  return absl::OkStatus();
}

// RankSeen for the way between ranks.
struct Surroundings {
  static constexpr int kMostGpus = 32;  // a node with more uses its first ones
  uint64_t host = 0;
  int gpus = 0;
  CoreMask processors;
  std::array<std::array<uint8_t, 16>, kMostGpus> uuids{};
  std::array<CoreMask, kMostGpus> near{};
};

Surroundings Pack(const RankSeen& rank) {
  Surroundings packed;
  packed.host = HostIdentity();
  packed.processors = rank.processors;
  packed.gpus = static_cast<int>(std::min(rank.gpus.size(), packed.uuids.size()));
  for (int i = 0; i < packed.gpus; ++i) {
    packed.uuids[i] = rank.gpus[i].uuid;
    packed.near[i] = rank.gpus[i].near;
  }
  return packed;
}
RankSeen Unpack(const Surroundings& packed) {
  RankSeen rank;
  rank.processors = packed.processors;
  for (int i = 0; i < packed.gpus; ++i) rank.gpus.push_back({packed.uuids[i], packed.near[i]});
  return rank;
}

StatusOr<ncclUniqueId> ShareUniqueId(Communicator& control) {
  ncclUniqueId id;
  std::memset(&id, 0, sizeof id);
  Status made;
  if (control.rank() == 0) made = internal::NcclStatus(ncclGetUniqueId(&id), "ncclGetUniqueId");
  TESSERA_RETURN_IF_ERROR(AgreeOnStatus(control, made, "making a NCCL id"));
  TESSERA_ASSIGN_OR_RETURN(Request request, control.Broadcast(std::as_writable_bytes(std::span(&id, 1)), 0));
  TESSERA_RETURN_IF_ERROR(Wait(control, request, "the NCCL id"));
  return id;
}

StatusOr<ncclComm_t> Initialize(Communicator& control, const ncclUniqueId& id, std::chrono::milliseconds deadline) {
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  ncclComm_t comm = nullptr;
  TESSERA_RETURN_IF_ERROR(internal::NcclStatus(
      ncclCommInitRankConfig(&comm, control.size(), id, control.rank(), &config), "ncclCommInitRankConfig"));
  const Status ready = internal::AwaitNccl(control, comm, deadline, "setting up NCCL");
  if (ready.ok()) return comm;
  (void)ncclCommAbort(comm);
  return ready;
}

}  // namespace

StatusOr<std::string> NcclVersion() {
  int version = 0;
  TESSERA_RETURN_IF_ERROR(internal::NcclStatus(ncclGetVersion(&version), "ncclGetVersion"));
  return VersionText(version);
}

StatusOr<CudaDevice> OpenDeviceOfRank(Communicator& control, bool may_share_gpu) {
  const StatusOr<RankSeen> seen = SeenFromHere();
  TESSERA_RETURN_IF_ERROR(AgreeOnStatus(control, seen.status(), "looking for GPUs"));
  TESSERA_ASSIGN_OR_RETURN(const std::vector<Surroundings> all,
                           AllGatherValue(control, Pack(*seen), "looking for GPUs"));
  std::vector<RankSeen> ranks;  // of this node
  size_t own = 0;
  for (int r = 0; r < control.size(); ++r) {
    if (all[r].host != all[control.rank()].host) continue;
    if (r == control.rank()) own = ranks.size();
    ranks.push_back(Unpack(all[r]));
  }
  const auto open = [&]() -> StatusOr<CudaDevice> {
    TESSERA_ASSIGN_OR_RETURN(const std::vector<int> places, PlaceRanks(ranks, may_share_gpu));
    return CudaDevice::Open(places[own]);
  };
  StatusOr<CudaDevice> device = open();
  TESSERA_RETURN_IF_ERROR(AgreeOnStatus(control, device.status(), "opening the GPU"));
  return device;
}

StatusOr<std::unique_ptr<StreamCommunicator>> MakeNcclCommunicator(Communicator& control, const CudaDevice& device,
                                                                   const NcclOptions& options) {
  const std::chrono::milliseconds deadline = options.deadline.value_or(control.deadline());
  const auto prepare = [&]() -> StatusOr<Facts> {
    if (deadline.count() <= 0) return absl::InvalidArgumentError("the deadline is not positive");
    TESSERA_RETURN_IF_ERROR(device.MakeCurrent());
    return FactsHere(device);
  };
  const StatusOr<Facts> mine = prepare();
  TESSERA_RETURN_IF_ERROR(AgreeOnStatus(control, mine.status(), "preparing NCCL"));
  TESSERA_ASSIGN_OR_RETURN(const std::vector<Facts> facts, AllGatherValue(control, *mine, "preparing NCCL"));
  TESSERA_RETURN_IF_ERROR(CheckFacts(facts, options.may_share_gpu));
  TESSERA_ASSIGN_OR_RETURN(const ncclUniqueId id, ShareUniqueId(control));

  // NCCL's set-up moves nothing over `control`, so to its stall detection this rank computes.
  const RankProgress before = control.progress();
  control.ReportProgress({RankState::kComputing, before.step});
  const StatusOr<ncclComm_t> comm = Initialize(control, id, std::min(deadline, control.deadline() / 2));
  control.ReportProgress(before);
  if (const Status agreed = AgreeOnStatus(control, comm.status(), "setting up NCCL"); !agreed.ok()) {
    if (comm.ok()) (void)ncclCommAbort(*comm);
    return agreed;
  }
  return std::unique_ptr<StreamCommunicator>(new internal::NcclCommunicator(control, device, *comm, deadline));
}

}  // namespace tessera
