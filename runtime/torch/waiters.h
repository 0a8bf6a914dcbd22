// Turns operations that can only be waited for into ones that can be tested: each waits on a thread of its own.
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace tessera_torch {

// One operation under way.
class Pending {
 public:
  enum class State { kWaiting, kDone, kFailed };
  State state() const {
    const std::lock_guard lock(mutex_);
    return state_;
  }
  void Finish(bool success) {
    const std::lock_guard lock(mutex_);
    state_ = success ? State::kDone : State::kFailed;
  }

 private:
  mutable std::mutex mutex_;
  State state_ = State::kWaiting;
};

// As many threads as there were ever waits at once: with fewer, the end of one operation could go unseen because
// another, which a peer holds back until it hears from this rank, is waited for first.
class Waiters {
 public:
  ~Waiters() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    changed_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  // Runs `wait`, which returns whether the operation succeeded.
  void Start(std::shared_ptr<Pending> pending, std::function<bool()> wait) {
    {
      const std::lock_guard lock(mutex_);
      queue_.push_back([pending = std::move(pending), wait = std::move(wait)] { pending->Finish(wait()); });
      if (idle_ < queue_.size()) threads_.emplace_back([this] { Run(); });
    }
    changed_.notify_one();
  }

 private:
  void Run() {
    std::unique_lock lock(mutex_);
    while (true) {
      ++idle_;
      changed_.wait(lock, [&] { return stopping_ || !queue_.empty(); });
      --idle_;
      if (queue_.empty()) return;
      const auto job = std::move(queue_.back());
      queue_.pop_back();
      lock.unlock();
      job();
      lock.lock();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::function<void()>> queue_;
  std::vector<std::thread> threads_;
  size_t idle_ = 0;
  bool stopping_ = false;
};

}  // namespace tessera_torch
