#include "collectives/inproc/world.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <random>
#include <thread>
#include <utility>

#include "collectives/group_communicator.h"
#include "collectives/inproc/mailbox.h"
#include "collectives/liveness.h"
#include "collectives/transport.h"

namespace tessera {
namespace internal {
namespace {

using namespace std::chrono_literals;

// What all ranks share. Lives until the last rank has left.
class InprocWorld {
 public:
  InprocWorld(int size, InprocOptions options) : options_(std::move(options)), mailboxes_(size), present_(size) {
    for (int r = 0; r < size; ++r) {
      ranks_.push_back(std::make_unique<Rank>(LivenessOptions{
          .rank = r, .size = size, .deadline = options_.deadline, .is_gone = [this](int peer, const RankRecord&) {
            return ranks_[peer]->killed.load();
          }}));
    }
    heartbeat_ = std::thread([this] { KeepBeating(); });
  }
  ~InprocWorld() {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    changed_.notify_all();
    heartbeat_.join();
  }

  int size() const { return static_cast<int>(ranks_.size()); }
  const InprocOptions& options() const { return options_; }
  Liveness& liveness(int rank) { return ranks_[rank]->liveness; }
  Mailbox& mailbox(int rank) { return mailboxes_[rank]; }
  bool IsKilled(int rank) const { return ranks_[rank]->killed.load(); }

  void Kill(int rank) { ranks_[rank]->killed = true; }
  // Blocks until no rank is left that runs.
  void Freeze(int rank) {
    std::unique_lock lock(mutex_);
    ranks_[rank]->frozen = true;
    ++frozen_;
    changed_.notify_all();
    changed_.wait(lock, [this] { return frozen_ >= present_; });
  }
  void Leave() {
    const std::lock_guard lock(mutex_);
    --present_;
    changed_.notify_all();
  }

 private:
  struct Rank {
    explicit Rank(LivenessOptions options) : liveness(std::move(options)) {}
    Liveness liveness;
    std::atomic<bool> killed = false;
    std::atomic<bool> frozen = false;
  };

  // One thread carries the heartbeats of all ranks: each round it collects every living rank's own record on a board
  // and shows the board to all.
  void KeepBeating() {
    const auto interval = std::clamp<std::chrono::milliseconds>(options_.deadline / 40, 1ms, 100ms);
    std::vector<RankRecord> board(ranks_.size());
    std::unique_lock lock(mutex_);
    do {
      lock.unlock();
      for (size_t r = 0; r < ranks_.size(); ++r) {
        if (!ranks_[r]->killed && !ranks_[r]->frozen) board[r] = ranks_[r]->liveness.Beat()[r];
      }
      for (const auto& rank : ranks_) {
        if (!rank->killed && !rank->frozen) rank->liveness.Merge(board);
      }
      lock.lock();
    } while (!changed_.wait_for(lock, interval, [this] { return stop_; }));
  }

  const InprocOptions options_;
  std::vector<std::unique_ptr<Rank>> ranks_;
  std::vector<Mailbox> mailboxes_;

  std::mutex mutex_;
  std::condition_variable changed_;
  int present_;
  int frozen_ = 0;
  bool stop_ = false;
  std::thread heartbeat_;
};

Status Killed(int rank) {
  return absl::AbortedError(absl::StrCat("rank ", rank, " was killed by fault injection"));
}

class InprocSend final : public RequestImpl {
 public:
  InprocSend(std::shared_ptr<InprocWorld> world, int rank, int peer, uint64_t key,
             std::shared_ptr<InprocMessage> message)
      : world_(std::move(world)), rank_(rank), peer_(peer), key_(key), message_(std::move(message)) {}
  ~InprocSend() override {
    if (!message_->done.load(std::memory_order_acquire)) world_->mailbox(peer_).Withdraw(key_, message_);
  }
  StatusOr<bool> Test() override {
    if (world_->IsKilled(rank_)) return Killed(rank_);
    if (!message_->done.load(std::memory_order_acquire)) {
      // Whoever waits must look whether a delay is over: the receiver may wait for a send of its own first.
      if (world_->options().longest_delay.count() == 0) return false;
      world_->mailbox(peer_).Poll(key_);
      if (!message_->done.load(std::memory_order_acquire)) return false;
    }
    world_->liveness(rank_).NoteAdvance();
    return true;
  }

 private:
  const std::shared_ptr<InprocWorld> world_;
  const int rank_;
  const int peer_;
  const uint64_t key_;
  const std::shared_ptr<InprocMessage> message_;
};

class InprocReceiving final : public RequestImpl {
 public:
  InprocReceiving(std::shared_ptr<InprocWorld> world, int rank, uint64_t key, std::shared_ptr<InprocReceive> receive)
      : world_(std::move(world)), rank_(rank), key_(key), receive_(std::move(receive)) {}
  ~InprocReceiving() override {
    if (!receive_->done.load(std::memory_order_acquire)) world_->mailbox(rank_).Withdraw(key_, receive_);
  }
  StatusOr<bool> Test() override {
    if (world_->IsKilled(rank_)) return Killed(rank_);
    if (!receive_->done.load(std::memory_order_acquire)) {
      if (world_->options().longest_delay.count() == 0) return false;
      world_->mailbox(rank_).Poll(key_);
      if (!receive_->done.load(std::memory_order_acquire)) return false;
    }
    if (!receive_->status.ok()) return receive_->status;
    world_->liveness(rank_).NoteAdvance();
    return true;
  }

 private:
  const std::shared_ptr<InprocWorld> world_;
  const int rank_;
  const uint64_t key_;
  const std::shared_ptr<InprocReceive> receive_;
};

class InprocTransport final : public Transport {
 public:
  InprocTransport(std::shared_ptr<InprocWorld> world, int rank)
      : world_(std::move(world)), rank_(rank), random_(world_->options().delay_seed * 1000003 + rank) {}
  ~InprocTransport() override {
    const RankProgress last = progress();
    if (last.state != RankState::kFailed) ReportProgress({RankState::kFinished, last.step});
    world_->Leave();
  }

  std::string_view name() const override { return "inproc"; }
  int rank() const override { return rank_; }
  int size() const override { return world_->size(); }
  int64_t tag_limit() const override { return int64_t{1} << 31; }

  Status BeginOperation() override {
    for (const InprocFault& fault : world_->options().faults) {
      if (fault.rank != rank_ || operations_ < fault.after_operations) continue;
      if (fault.kind == InprocFault::Kind::kFreeze) {
        world_->Freeze(rank_);
        return absl::AbortedError(absl::StrCat("rank ", rank_, " was frozen by fault injection"));
      }
      world_->Kill(rank_);
      return Killed(rank_);
    }
    ++operations_;
    return absl::OkStatus();
  }

  StatusOr<std::unique_ptr<RequestImpl>> Send(ConstBytes data, int peer, int64_t tag) override {
    if (world_->IsKilled(rank_)) return Killed(rank_);
    auto message = std::make_shared<InprocMessage>();
    message->bytes = data;
    if (const auto longest = world_->options().longest_delay; longest.count() > 0) {
      const std::lock_guard lock(random_mutex_);
      const int64_t delay_us = std::uniform_int_distribution<int64_t>(0, longest.count())(random_);
      message->visible_at = std::chrono::steady_clock::now() + std::chrono::microseconds(delay_us);
    }
    const uint64_t key = Mailbox::Key(rank_, tag);
    world_->mailbox(peer).Deliver(key, message, world_->options().eager);
    return std::make_unique<InprocSend>(world_, rank_, peer, key, std::move(message));
  }

  StatusOr<std::unique_ptr<RequestImpl>> Receive(Bytes data, int peer, int64_t tag) override {
    if (world_->IsKilled(rank_)) return Killed(rank_);
    auto receive = std::make_shared<InprocReceive>();
    receive->buffer = data;
    const uint64_t key = Mailbox::Key(peer, tag);
    world_->mailbox(rank_).Post(key, receive);
    return std::make_unique<InprocReceiving>(world_, rank_, key, std::move(receive));
  }

  void ReportProgress(RankProgress progress) override { world_->liveness(rank_).Report(progress); }
  RankProgress progress() const override { return world_->liveness(rank_).progress(); }
  Status Health() const override { return world_->IsKilled(rank_) ? Killed(rank_) : world_->liveness(rank_).Health(); }
  std::chrono::milliseconds deadline() const override { return world_->options().deadline; }

 private:
  const std::shared_ptr<InprocWorld> world_;
  const int rank_;
  // A rank may use several communicators from several threads.
  std::mutex random_mutex_;
  std::mt19937_64 random_;
  std::atomic<int64_t> operations_ = 0;
};

}  // namespace
}  // namespace internal

StatusOr<std::vector<std::unique_ptr<Communicator>>> MakeInprocWorld(int size, const InprocOptions& options) {
  if (size < 1) return absl::InvalidArgumentError(absl::StrCat("a world of ", size, " ranks has no rank"));
  if (options.deadline.count() <= 0) return absl::InvalidArgumentError("the deadline is not positive");
  const auto world = std::make_shared<internal::InprocWorld>(size, options);
  std::vector<std::unique_ptr<Communicator>> communicators;
  for (int r = 0; r < size; ++r) {
    auto transport = std::make_shared<internal::InprocTransport>(world, r);
    TESSERA_ASSIGN_OR_RETURN(auto communicator, internal::GroupCommunicator::MakeWorld(std::move(transport)));
    communicators.push_back(std::move(communicator));
  }
  return communicators;
}

}  // namespace tessera
