// What ThreadSanitizer may believe about order. The stand-in's own locks would order streams that the program left
// unordered, and so hide its races; they are hidden from the sanitizer, and exactly the edges that CUDA promises are
// told to it: submission before execution, execution before the end of a wait. Without the sanitizer all of this is
// nothing.
#pragma once

#include <mutex>

#ifdef __SANITIZE_THREAD__
extern "C" {
void AnnotateIgnoreSyncBegin(const char* file, int line);
void AnnotateIgnoreSyncEnd(const char* file, int line);
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
void __tsan_write_range(void* address, unsigned long bytes);
}
#endif

namespace tessera::vgpu {

// While it lives, locks and atomics of this thread order nothing. Reads and writes still count: a kernel runs under it.
class NoOrder {
 public:
  NoOrder() { Begin(); }
  ~NoOrder() { End(); }
  NoOrder(const NoOrder&) = delete;
  NoOrder& operator=(const NoOrder&) = delete;

  static int& depth() {
    thread_local int depth = 0;
    return depth;
  }

 private:
  friend class Ordered;
  static void Begin() {
#ifdef __SANITIZE_THREAD__
    AnnotateIgnoreSyncBegin(__FILE__, __LINE__);
#endif
    ++depth();
  }
  static void End() {
    --depth();
#ifdef __SANITIZE_THREAD__
    AnnotateIgnoreSyncEnd(__FILE__, __LINE__);
#endif
  }
};

// While it lives, they do again: for code of the program that a stream runs.
class Ordered {
 public:
  Ordered() : depth_(NoOrder::depth()) {
    for (int i = 0; i < depth_; ++i) NoOrder::End();
  }
  ~Ordered() {
    for (int i = 0; i < depth_; ++i) NoOrder::Begin();
  }
  Ordered(const Ordered&) = delete;
  Ordered& operator=(const Ordered&) = delete;

 private:
  const int depth_;
};

// While it lives, the sanitizer sees nothing of this thread: for bookkeeping.
class Hidden {
 public:
  Hidden() { Begin(); }
  ~Hidden() { End(); }

 private:
  friend class Visible;
  static void Begin() {
#ifdef __SANITIZE_THREAD__
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
#endif
  }
  static void End() {
#ifdef __SANITIZE_THREAD__
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
#endif
  }
  NoOrder no_order_;
};

// While it lives, directly inside one Hidden, reads and writes count again: for what a stream does to the program's
// memory.
class Visible {
 public:
  Visible() { Hidden::End(); }
  ~Visible() { Hidden::Begin(); }
  Visible(const Visible&) = delete;
  Visible& operator=(const Visible&) = delete;
};

// A hidden critical section.
class HiddenLock {
 public:
  explicit HiddenLock(std::mutex& mutex) : lock_(mutex) {}
  std::unique_lock<std::mutex>& lock() { return lock_; }

 private:
  Hidden hidden_;  // before the lock, and until after it
  std::unique_lock<std::mutex> lock_;
};

// What happened before Release(x) happened before everything after a later Acquire(x).
inline void Release([[maybe_unused]] const void* address) {
#ifdef __SANITIZE_THREAD__
  const Ordered ordered;
  __tsan_release(const_cast<void*>(address));
#endif
}
inline void Acquire([[maybe_unused]] const void* address) {
#ifdef __SANITIZE_THREAD__
  const Ordered ordered;
  __tsan_acquire(const_cast<void*>(address));
#endif
}
// Counts as a write of the whole range, which nothing else may be unordered with.
inline void Touch([[maybe_unused]] void* address, [[maybe_unused]] unsigned long bytes) {
#ifdef __SANITIZE_THREAD__
  __tsan_write_range(address, bytes);
#endif
}

}  // namespace tessera::vgpu
