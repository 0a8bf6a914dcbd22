// Working memory that a thread keeps from one call to the next: memory new to the process costs a page fault every
// 4 KiB, which a decode step of a few milliseconds would feel.
#pragma once

#include <hwy/aligned_allocator.h>

#include <cstddef>

namespace tessera::cpu {

class Scratch {
 public:
  // What is kept at most; more is given back by Release.
  static constexpr size_t kMostFloats = size_t{4} << 20;

  // [floats], aligned to a cache line, uninitialised, valid until the next Take or Release; null without the memory.
  float* Take(size_t floats) {
    if (floats > capacity_ || memory_ == nullptr) {
      memory_.reset();  // before asking for more
      capacity_ = 0;
      memory_ =
          hwy::AllocateAligned<float>(floats > 0 ? floats : 1);  // Highway ends the process when asked for nothing
      if (memory_ != nullptr) capacity_ = floats;
    }
    return memory_.get();
  }
  void Release() {
    if (capacity_ <= kMostFloats) return;
    memory_.reset();
    capacity_ = 0;
  }

 private:
  hwy::AlignedFreeUniquePtr<float[]> memory_;
  size_t capacity_ = 0;
};

}  // namespace tessera::cpu
