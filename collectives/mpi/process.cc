#include "collectives/mpi/process.h"

#include <atomic>
#include <mutex>
#include <utility>
#include <vector>

namespace tessera::internal {
namespace {

std::atomic<bool> abandoned = false;

struct Worlds {
  std::mutex mutex;
  std::vector<std::weak_ptr<const Liveness>> liveness;
};
// Never destroyed: the termination watcher may look while the process exits.
Worlds& AllWorlds() {
  static auto* const worlds = new Worlds;
  return *worlds;
}

}  // namespace

void RegisterWorld(std::weak_ptr<const Liveness> liveness) {
  Worlds& worlds = AllWorlds();
  const std::lock_guard lock(worlds.mutex);
  std::erase_if(worlds.liveness, [](const auto& world) { return world.expired(); });
  worlds.liveness.push_back(std::move(liveness));
}

std::string DescribeTrouble() {
  Worlds& worlds = AllWorlds();
  const std::lock_guard lock(worlds.mutex);
  for (const auto& world : worlds.liveness) {
    const std::shared_ptr<const Liveness> liveness = world.lock();
    if (liveness == nullptr) continue;
    if (std::string gone = liveness->DescribeGonePeers(); !gone.empty()) return gone;
    if (const Status health = liveness->Health(); !health.ok()) return std::string(health.message());
  }
  return "";
}

void AbandonMpi() {
  abandoned = true;
}
bool MpiIsAbandoned() {
  return abandoned;
}

}  // namespace tessera::internal
