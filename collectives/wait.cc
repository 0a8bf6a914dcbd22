#include <algorithm>
#include <chrono>
#include <thread>

#include "collectives/communicator.h"

namespace tessera {
namespace {

// A reply on the same host takes about a microsecond, so the first polls do not give the core away; a long wait must,
// because ranks may outnumber cores.
constexpr int kSpins = 64;
constexpr int kYields = 256;
constexpr std::chrono::microseconds kShortestSleep{10};
constexpr std::chrono::microseconds kLongestSleep{200};

class BackOff {
 public:
  void Pause() {
    ++polls_;
    if (polls_ <= kSpins) return;
    if (polls_ <= kSpins + kYields) {
      std::this_thread::yield();
      return;
    }
    std::this_thread::sleep_for(sleep_);
    sleep_ = std::min(2 * sleep_, kLongestSleep);
  }

 private:
  int64_t polls_ = 0;
  std::chrono::microseconds sleep_ = kShortestSleep;
};

// Keeps the payload, by which callers tell a peer's failure from one of their own.
Status Annotate(const Status& status, std::string_view what) {
  Status annotated(status.code(),
                   absl::StrCat("waiting for ", absl::string_view(what.data(), what.size()), ": ", status.message()));
  status.ForEachPayload([&](absl::string_view type, const absl::Cord& value) { annotated.SetPayload(type, value); });
  return annotated;
}

Status Poll(Communicator& comm, Request& request, std::string_view what) {
  BackOff back_off;
  while (true) {
    const StatusOr<bool> done = request.Test();
    if (!done.ok()) return Annotate(done.status(), what);
    if (*done) return absl::OkStatus();
    if (const Status health = comm.Health(); !health.ok()) return Annotate(health, what);
    back_off.Pause();
  }
}

}  // namespace

Status Wait(Communicator& comm, Request& request, std::string_view what) {
  // Most waits of an overlapped plan find their request done; they leave no trace in the heartbeat.
  if (const StatusOr<bool> done = request.Test(); done.ok() && *done) return absl::OkStatus();
  const RankProgress before = comm.progress();
  // A rank that has failed stays failed to its peers, whatever it does to wind up.
  if (before.state != RankState::kFailed) comm.ReportProgress({RankState::kWaiting, before.step});
  const Status status = Poll(comm, request, what);
  comm.ReportProgress(before);
  return status;
}

}  // namespace tessera
