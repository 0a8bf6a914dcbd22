// Named ranges of host code that NVIDIA's profilers show above the work it submits. They cost nothing without one.
#pragma once

namespace tessera {

// From construction to destruction, on this thread.
class ProfilerRange {
 public:
  explicit ProfilerRange(const char* name);
  ~ProfilerRange();
  ProfilerRange(const ProfilerRange&) = delete;
  ProfilerRange& operator=(const ProfilerRange&) = delete;
};

}  // namespace tessera
