#include "runtime/device/stream.h"

#include <utility>

namespace tessera {

struct CpuEvent::State {
  std::mutex mutex;
  std::condition_variable changed;
  bool done = false;
};

bool CpuEvent::Done() const {
  if (state_ == nullptr) return true;
  std::lock_guard lock(state_->mutex);
  return state_->done;
}

void CpuEvent::Wait() const {
  if (state_ == nullptr) return;
  std::unique_lock lock(state_->mutex);
  state_->changed.wait(lock, [&] { return state_->done; });
}

CpuStream::CpuStream() : thread_([this] { Run(); }) {}

CpuStream::~CpuStream() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void CpuStream::Submit(std::function<Status()> work) {
  {
    std::lock_guard lock(mutex_);
    queue_.push_back({std::move(work), false});
  }
  changed_.notify_all();
}

CpuEvent CpuStream::Record() {
  CpuEvent event;
  event.state_ = std::make_shared<CpuEvent::State>();
  {
    std::lock_guard lock(mutex_);
    queue_.push_back({[state = event.state_] {
                        {
                          std::lock_guard event_lock(state->mutex);
                          state->done = true;
                        }
                        state->changed.notify_all();
                        return absl::OkStatus();
                      },
                      true});
  }
  changed_.notify_all();
  return event;
}

void CpuStream::WaitFor(const CpuEvent& event) {
  Submit([event] {
    event.Wait();
    return absl::OkStatus();
  });
}

Status CpuStream::Synchronize() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return queue_.empty() && !busy_; });
  return std::exchange(status_, absl::OkStatus());
}

void CpuStream::Run() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return stopping_ || !queue_.empty(); });
    if (queue_.empty()) return;
    Work work = std::move(queue_.front());
    queue_.pop_front();
    busy_ = true;
    const bool skip = !status_.ok() && !work.always;
    lock.unlock();
    Status status = skip ? absl::OkStatus() : work.run();
    work.run = nullptr;  // captured objects die before anyone is told that the stream is idle
    lock.lock();
    if (status_.ok() && !status.ok()) status_ = std::move(status);
    busy_ = false;
    changed_.notify_all();
  }
}

}  // namespace tessera
