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
}
#endif

namespace tessera::vgpu {

// While it lives, locks of this thread order nothing. Reads and writes still count: a kernel runs under it.
class NoOrder {
 public:
  NoOrder() {
#ifdef __SANITIZE_THREAD__
    AnnotateIgnoreSyncBegin(__FILE__, __LINE__);
#endif
  }
  ~NoOrder() {
#ifdef __SANITIZE_THREAD__
    AnnotateIgnoreSyncEnd(__FILE__, __LINE__);
#endif
  }
  NoOrder(const NoOrder&) = delete;
  NoOrder& operator=(const NoOrder&) = delete;
};

// While it lives, the sanitizer sees nothing of this thread.
class Hidden {
 public:
  Hidden() {
#ifdef __SANITIZE_THREAD__
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
#endif
  }
  ~Hidden() {
#ifdef __SANITIZE_THREAD__
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
#endif
  }

 private:
  NoOrder no_order_;
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
  __tsan_release(const_cast<void*>(address));
#endif
}
inline void Acquire([[maybe_unused]] const void* address) {
#ifdef __SANITIZE_THREAD__
  __tsan_acquire(const_cast<void*>(address));
#endif
}

}  // namespace tessera::vgpu
