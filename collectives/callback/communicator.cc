#include "collectives/callback/communicator.h"

#include <atomic>
#include <mutex>
#include <utility>

#include "collectives/group_communicator.h"
#include "collectives/transport.h"

namespace tessera {
namespace internal {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::chrono::milliseconds kAliveInterval{20};  // between two looks at the peers

// Judges the world by what this rank sees: answers of `alive`, failed functions, and its own waiting without progress.
class CallbackWorld {
 public:
  CallbackWorld(const CallbackFunctions& functions, const CallbackOptions& options)
      : functions_(functions), options_(options) {}

  const CallbackOptions& options() const { return options_; }

  // Calls a function of the table; one at a time.
  template <typename Function, typename... Arguments>
  Status Call(const char* name, Function function, Arguments... arguments) {
    const std::lock_guard lock(calls_);
    const int code = function(functions_.context, arguments...);
    if (code == 0) return absl::OkStatus();
    return GiveUp(absl::UnavailableError(absl::StrCat("the callback '", name, "' of rank ", options_.rank, " returned ",
                                                      code, ", which means that it failed")));
  }
  const CallbackFunctions& functions() const { return functions_; }

  void NoteAdvance() { advanced_at_.store(Now(), std::memory_order_relaxed); }
  void Report(RankProgress progress) {
    const bool changed = step_.exchange(progress.step) != progress.step;
    if (state_.exchange(progress.state) != progress.state || changed) NoteAdvance();
    if (progress.state != RankState::kFailed) return;
    const std::lock_guard lock(calls_);
    Announce(absl::StrCat("rank ", options_.rank, " failed in plan step ", progress.step));
  }
  RankProgress progress() const { return {state_.load(), step_.load()}; }

  Status Health() {
    {
      const std::lock_guard lock(verdict_mutex_);
      if (!verdict_.ok()) return verdict_;
    }
    if (state_.load() == RankState::kWaiting) {
      const std::chrono::nanoseconds waited(Now() - advanced_at_.load(std::memory_order_relaxed));
      if (waited > options_.deadline) {
        const std::lock_guard lock(calls_);
        return GiveUp(absl::DeadlineExceededError(
            absl::StrFormat("rank %d has waited %.1f s in plan step %d and no message came or went; a peer is dead, "
                            "stalled or computes for longer than the deadline",
                            options_.rank, std::chrono::duration<double>(waited).count(), step_.load())));
      }
    }
    return functions_.alive == nullptr ? absl::OkStatus() : LookAtPeers();
  }

 private:
  static int64_t Now() { return std::chrono::nanoseconds(Clock::now().time_since_epoch()).count(); }

  Status LookAtPeers() {
    const std::lock_guard lock(calls_);
    const auto now = Clock::now();
    if (now < next_look_) return absl::OkStatus();
    next_look_ = now + kAliveInterval;
    for (int peer = 0; peer < options_.size; ++peer) {
      if (peer == options_.rank || functions_.alive(functions_.context, peer) != 0) continue;
      return GiveUp(absl::UnavailableError(absl::StrCat("rank ", peer, " is gone, as the callback 'alive' says; rank ",
                                                        options_.rank, " is in plan step ", step_.load())));
    }
    return absl::OkStatus();
  }

  // With calls_ held. The first verdict stays.
  Status GiveUp(Status verdict) {
    {
      const std::lock_guard lock(verdict_mutex_);
      if (!verdict_.ok()) return verdict_;
      verdict_ = verdict;
    }
    Announce(std::string(verdict.message()));
    return verdict;
  }
  void Announce(const std::string& reason) {
    if (std::exchange(announced_, true) || functions_.abort == nullptr) return;
    functions_.abort(functions_.context, reason.c_str());
  }

  const CallbackFunctions functions_;
  const CallbackOptions options_;
  std::atomic<RankState> state_{RankState::kIdle};
  std::atomic<int64_t> step_{-1};
  std::atomic<int64_t> advanced_at_{Now()};

  std::mutex calls_;  // held while a function of the table runs
  Clock::time_point next_look_;
  bool announced_ = false;
  std::mutex verdict_mutex_;
  Status verdict_;
};

class CallbackMessage final : public RequestImpl {
 public:
  CallbackMessage(std::shared_ptr<CallbackWorld> world, void* request) : world_(std::move(world)), request_(request) {}
  ~CallbackMessage() override {
    if (done_ || !error_.ok() || world_->functions().cancel == nullptr) return;
    world_->Call("cancel", world_->functions().cancel, request_).IgnoreError();
  }
  StatusOr<bool> Test() override {
    if (done_) return true;
    TESSERA_RETURN_IF_ERROR(error_);
    int done = 0;
    error_ = world_->Call("test", world_->functions().test, request_, &done);
    TESSERA_RETURN_IF_ERROR(error_);
    if (done == 0) return false;
    done_ = true;
    world_->NoteAdvance();
    return true;
  }

 private:
  const std::shared_ptr<CallbackWorld> world_;
  void* const request_;
  bool done_ = false;
  Status error_;
};

class CallbackTransport final : public Transport {
 public:
  explicit CallbackTransport(std::shared_ptr<CallbackWorld> world) : world_(std::move(world)) {}

  std::string_view name() const override { return "callback"; }
  int rank() const override { return world_->options().rank; }
  int size() const override { return world_->options().size; }
  int64_t tag_limit() const override { return world_->options().tag_limit; }

  StatusOr<std::unique_ptr<RequestImpl>> Send(ConstBytes data, int peer, int64_t tag) override {
    void* request = nullptr;
    TESSERA_RETURN_IF_ERROR(world_->Call("isend", world_->functions().isend, static_cast<const void*>(data.data()),
                                         data.size(), peer, tag, &request));
    return std::make_unique<CallbackMessage>(world_, request);
  }
  StatusOr<std::unique_ptr<RequestImpl>> Receive(Bytes data, int peer, int64_t tag) override {
    void* request = nullptr;
    TESSERA_RETURN_IF_ERROR(world_->Call("irecv", world_->functions().irecv, static_cast<void*>(data.data()),
                                         data.size(), peer, tag, &request));
    return std::make_unique<CallbackMessage>(world_, request);
  }

  void ReportProgress(RankProgress progress) override { world_->Report(progress); }
  RankProgress progress() const override { return world_->progress(); }
  Status Health() const override { return world_->Health(); }
  std::chrono::milliseconds deadline() const override { return world_->options().deadline; }

 private:
  const std::shared_ptr<CallbackWorld> world_;
};

}  // namespace
}  // namespace internal

StatusOr<std::unique_ptr<Communicator>> MakeCallbackWorld(const CallbackFunctions& functions,
                                                          const CallbackOptions& options) {
  const std::pair<const char*, bool> required[] = {{"isend", functions.isend != nullptr},
                                                   {"irecv", functions.irecv != nullptr},
                                                   {"test", functions.test != nullptr}};
  for (const auto& [name, present] : required) {
    if (!present) return absl::InvalidArgumentError(absl::StrCat("callbacks: the function '", name, "' is missing"));
  }
  if (options.size < 1) {
    return absl::InvalidArgumentError(absl::StrCat("callbacks: size is ", options.size, "; it must be at least 1"));
  }
  if (options.rank < 0 || options.rank >= options.size) {
    return absl::InvalidArgumentError(
        absl::StrCat("callbacks: rank is ", options.rank, "; it must be from 0 to ", options.size - 1));
  }
  if (options.tag_limit > int64_t{1} << 31) {
    return absl::InvalidArgumentError(
        absl::StrCat("callbacks: tag_limit is ", options.tag_limit, "; it must be at most 2^31"));
  }
  if (options.deadline.count() <= 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("callbacks: the deadline is ", options.deadline.count(), " ms; it must be positive"));
  }
  auto world = std::make_shared<internal::CallbackWorld>(functions, options);
  return internal::GroupCommunicator::MakeWorld(std::make_shared<internal::CallbackTransport>(std::move(world)));
}

}  // namespace tessera
