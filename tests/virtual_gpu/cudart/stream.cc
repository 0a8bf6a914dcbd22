#include "tests/virtual_gpu/cudart/stream.h"

#include <atomic>
#include <thread>
#include <utility>

#include "tests/virtual_gpu/cudart/device.h"
#include "tests/virtual_gpu/cudart/order.h"

namespace tessera::vgpu {

void Completion::Signal() {
  Release(this);
  HiddenLock hidden(mutex_);
  done_ = true;
  when_ = std::chrono::steady_clock::now();
  changed_.notify_all();
}

void Completion::Wait() {
  {
    HiddenLock hidden(mutex_);
    changed_.wait(hidden.lock(), [this] { return done_; });
  }
  Acquire(this);
}

bool Completion::Done() {
  {
    HiddenLock hidden(mutex_);
    if (!done_) return false;
  }
  Acquire(this);
  return true;
}

uint64_t Stream::NextId() {
  static std::atomic<uint64_t> next{1};
  return next.fetch_add(1, std::memory_order_relaxed);
}

void Stream::Start() {
  std::thread([self = shared_from_this()] { self->Run(); }).detach();
}

void Stream::Enqueue(Work work, Point done) {
  HiddenLock hidden(mutex_);
  last_ = done;
  items_.push_back(std::make_unique<Item>(Item{std::move(work), std::move(done)}));
  changed_.notify_all();
}

Point Stream::last() {
  HiddenLock hidden(mutex_);
  return last_;
}

void Stream::Retire() {
  HiddenLock hidden(mutex_);
  retired_ = true;
  changed_.notify_all();
}

void Stream::Run() {
  // Only the work itself is seen: also the counts of shared pointers would order streams.
  const Hidden hidden_loop;
  while (true) {
    std::unique_ptr<Item> item;
    {
      HiddenLock hidden(mutex_);
      changed_.wait(hidden.lock(), [this] { return retired_ || !items_.empty(); });
      if (items_.empty()) return;
      item = std::move(items_.front());
      items_.pop_front();
    }
    Acquire(item->done.get());
    for (const Point& point : item->work.after) {
      if (point != nullptr) point->Wait();
    }
    if (!device_.poisoned()) {
      const Visible visible;
      item->work.run();
    }
    item->work.run = nullptr;  // captured objects die before anyone is told that the work is done
    item->done->Signal();
  }
}

}  // namespace tessera::vgpu
