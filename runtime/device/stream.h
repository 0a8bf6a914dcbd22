// CPU streams and events: work submitted to a stream runs in order on the stream's own thread.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

#include "runtime/base/status.h"

namespace tessera {

// A point in a stream's order. Copyable handle; default-constructed events are complete.
class CpuEvent {
 public:
  bool Done() const;
  void Wait() const;  // blocks until the work recorded before it has run

 private:
  friend class CpuStream;
  struct State;
  std::shared_ptr<State> state_;
};

// An in-order queue with a thread. The first error sticks: later work is skipped until Synchronize() returns it.
class CpuStream {
 public:
  CpuStream();
  ~CpuStream();  // waits for submitted work
  CpuStream(const CpuStream&) = delete;
  CpuStream& operator=(const CpuStream&) = delete;

  void Submit(std::function<Status()> work);
  CpuEvent Record();
  void WaitFor(const CpuEvent& event);  // later work starts after the event
  Status Synchronize();                 // waits for everything submitted; returns and clears the first error

 private:
  struct Work {
    std::function<Status()> run;
    bool always;  // runs even after an error: events must not be lost
  };
  void Run();
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Work> queue_;
  bool busy_ = false;
  bool stopping_ = false;
  Status status_;
  std::thread thread_;
};

}  // namespace tessera
