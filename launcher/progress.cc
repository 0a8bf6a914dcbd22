#include "launcher/progress.h"

#include <unistd.h>

#include <chrono>
#include <cstdio>

namespace tessera::launcher {

Progress::Progress(bool enabled) {
  if (enabled && isatty(STDERR_FILENO) != 0) thread_ = std::thread([this] { Run(); });
}

Progress::~Progress() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void Progress::Say(std::string what) {
  const std::lock_guard lock(mutex_);
  what_ = std::move(what);
}

void Progress::Run() {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point start = Clock::now();
  std::unique_lock lock(mutex_);
  auto next = start + std::chrono::seconds(2);
  bool shown = false;
  while (!changed_.wait_until(lock, next, [this] { return stopping_; })) {
    const double elapsed = std::chrono::duration<double>(Clock::now() - start).count();
    std::fprintf(stderr, "\r\033[K%5.0f s  %s", elapsed, what_.c_str());
    std::fflush(stderr);
    shown = true;
    next = Clock::now() + std::chrono::milliseconds(500);
  }
  if (shown) std::fprintf(stderr, "\r\033[K");
}

}  // namespace tessera::launcher
