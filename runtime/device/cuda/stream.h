// CUDA streams and events, owned. Handles are CUDA's own (cudaStream_t is CUstream_st*), so that kernels' host wrappers
// take them as they are.
#pragma once

#include <chrono>
#include <memory>
#include <string_view>

#include "runtime/base/status.h"
#include "runtime/device/cuda/device.h"

struct CUstream_st;
struct CUevent_st;

namespace tessera {

// How long a GPU is waited for unless a caller says otherwise: no kernel is meant to run for minutes, and one that
// never ends must not be waited for.
inline constexpr std::chrono::milliseconds kLongestGpuWait = std::chrono::minutes(10);

// Whether everything submitted to a stream has run. The device's fault when there was one.
StatusOr<bool> StreamDone(CUstream_st* stream);

// An in-order queue of a GPU. It does not synchronise with the legacy default stream. Move-only; destroying it does not
// wait for what was submitted, CUDA finishes that first.
class CudaStream {
 public:
  enum class Priority { kDefault, kHigh };  // high: communication, which others wait for
  static StatusOr<CudaStream> Create(const CudaDevice& device, Priority priority = Priority::kDefault);

  CUstream_st* handle() const { return handle_.get(); }
  StatusOr<bool> Done() const { return StreamDone(handle()); }
  // Waits until it has, polling: DeadlineExceeded naming `what` after `deadline`. Not for the hot path.
  Status Synchronize(std::string_view what, std::chrono::milliseconds deadline = kLongestGpuWait) const;

 private:
  struct Destroy {
    void operator()(CUstream_st* stream) const;
  };
  std::unique_ptr<CUstream_st, Destroy> handle_;
};

// A point in a stream's order. Move-only. Without timing, which costs the GPU a timestamp, unless asked for.
class CudaEvent {
 public:
  static StatusOr<CudaEvent> Create(const CudaDevice& device, bool timing = false);

  CUevent_st* handle() const { return handle_.get(); }
  // Marks the end of what was submitted to the stream so far. Recording again moves the mark.
  Status Record(CUstream_st* stream);
  // Later work of the stream starts after the mark. No effect when nothing was recorded.
  Status MakeWait(CUstream_st* stream) const;
  StatusOr<bool> Done() const;
  Status Synchronize(std::string_view what, std::chrono::milliseconds deadline = kLongestGpuWait) const;
  // Between two events with timing that are done.
  static StatusOr<double> Seconds(const CudaEvent& begin, const CudaEvent& end);

 private:
  struct Destroy {
    void operator()(CUevent_st* event) const;
  };
  std::unique_ptr<CUevent_st, Destroy> handle_;
};

// Waits for what was submitted to the stream so far, and not for what others submit meanwhile. Not for the hot path.
Status WaitForSubmitted(const CudaDevice& device, CUstream_st* stream, std::string_view what,
                        std::chrono::milliseconds deadline = kLongestGpuWait);

}  // namespace tessera
