// Streams, and what other threads can wait for.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace tessera::vgpu {

class Device;
struct Capture;

// The end of one piece of work.
class Completion {
 public:
  void Signal();
  void Wait();
  bool Done();
  std::chrono::steady_clock::time_point when() const { return when_; }  // of the signal

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool done_ = false;
  std::chrono::steady_clock::time_point when_;
};
using Point = std::shared_ptr<Completion>;  // null: complete from the start

struct Work {
  std::string what;           // the call that submitted it
  std::function<void()> run;  // skipped once the device is poisoned
  std::vector<Point> after;   // ends of work on other streams that come first
};

// An in-order queue with a thread of its own.
class Stream : public std::enable_shared_from_this<Stream> {
 public:
  // `blocking` streams and the legacy default stream wait for each other, as cudaStreamCreate documents.
  Stream(Device& device, bool blocking) : device_(device), blocking_(blocking) {}
  void Start();  // once, before anything is submitted
  // `done` is signalled after the work; what was released to it (order.h) comes before the work.
  void Enqueue(Work work, Point done);
  Point last();   // the end of what was submitted so far
  void Retire();  // the thread ends after what was submitted

  Device& device() const { return device_; }
  bool blocking() const { return blocking_; }
  uint64_t id() const { return id_; }

  // The capture this stream takes part in, null outside. Guarded by the caller's thread: capturing a stream from
  // several threads at once is undefined in CUDA too.
  std::shared_ptr<Capture> capture;
  std::vector<int> capture_tail;  // nodes that the next captured work depends on

 private:
  struct Item {
    Work work;
    Point done;
  };
  void Run();

  Device& device_;
  const bool blocking_;
  const uint64_t id_ = NextId();
  static uint64_t NextId();
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::unique_ptr<Item>> items_;
  Point last_;
  bool retired_ = false;
};

}  // namespace tessera::vgpu

// The handles of cuda_runtime_api.h.
struct CUstream_st : tessera::vgpu::Stream {
  using Stream::Stream;
};
struct CUevent_st {
  bool timing = true;
  bool recorded = false;
  tessera::vgpu::Point point;
  std::shared_ptr<tessera::vgpu::Capture> capture;  // when it was recorded in one
  std::vector<int> capture_tail;
};
