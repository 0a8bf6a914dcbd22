#include "runtime/device/cuda/stream.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <thread>

#include "runtime/device/cuda/check.h"

namespace tessera {
namespace {

using Clock = std::chrono::steady_clock;

// cudaSuccess is true, cudaErrorNotReady false, anything else an error.
StatusOr<bool> Ready(cudaError_t code, std::string_view what) {
  if (code == cudaErrorNotReady) {
    TESSERA_RETURN_IF_ERROR(DeviceFault());
    return false;
  }
  TESSERA_RETURN_IF_ERROR(CheckCuda(code, what));
  return true;
}

// Most waits are for work that is nearly done: the first polls only yield.
template <typename Done>
Status Poll(Done done, std::string_view what, std::chrono::milliseconds deadline) {
  constexpr std::chrono::microseconds kLongestSleep{200};
  constexpr int kYields = 256;
  const Clock::time_point end = Clock::now() + deadline;
  std::chrono::microseconds sleep{5};
  for (int polls = 0;; ++polls) {
    TESSERA_ASSIGN_OR_RETURN(const bool ready, done());
    if (ready) return absl::OkStatus();
    if (Clock::now() >= end) {
      return absl::DeadlineExceededError(
          absl::StrCat(std::string(what), " has not finished on the GPU within ", deadline.count(), " ms"));
    }
    if (polls < kYields) {
      std::this_thread::yield();
    } else {
      std::this_thread::sleep_for(sleep);
      sleep = std::min(2 * sleep, kLongestSleep);
    }
  }
}

}  // namespace

void CudaStream::Destroy::operator()(CUstream_st* stream) const {
  (void)cudaStreamDestroy(stream);
}

StatusOr<CudaStream> CudaStream::Create(const CudaDevice& device, Priority priority) {
  TESSERA_RETURN_IF_ERROR(device.MakeCurrent());
  int least = 0, greatest = 0;
  TESSERA_RETURN_IF_ERROR(
      CheckCuda(cudaDeviceGetStreamPriorityRange(&least, &greatest), "cudaDeviceGetStreamPriorityRange"));
  cudaStream_t handle = nullptr;
  TESSERA_RETURN_IF_ERROR(CheckCuda(
      cudaStreamCreateWithPriority(&handle, cudaStreamNonBlocking, priority == Priority::kHigh ? greatest : least),
      "cudaStreamCreateWithPriority"));
  CudaStream stream;
  stream.handle_.reset(handle);
  return stream;
}

StatusOr<bool> StreamDone(CUstream_st* stream) {
  return Ready(cudaStreamQuery(stream), "cudaStreamQuery");
}

Status CudaStream::Synchronize(std::string_view what, std::chrono::milliseconds deadline) const {
  return Poll([this] { return Done(); }, what, deadline);
}

void CudaEvent::Destroy::operator()(CUevent_st* event) const {
  (void)cudaEventDestroy(event);
}

StatusOr<CudaEvent> CudaEvent::Create(const CudaDevice& device, bool timing) {
  TESSERA_RETURN_IF_ERROR(device.MakeCurrent());
  cudaEvent_t handle = nullptr;
  TESSERA_RETURN_IF_ERROR(CheckCuda(
      cudaEventCreateWithFlags(&handle, timing ? cudaEventDefault : cudaEventDisableTiming), "cudaEventCreate"));
  CudaEvent event;
  event.handle_.reset(handle);
  return event;
}

Status CudaEvent::Record(CUstream_st* stream) {
  return CheckCuda(cudaEventRecord(handle(), stream), "cudaEventRecord");
}

Status CudaEvent::MakeWait(CUstream_st* stream) const {
  return CheckCuda(cudaStreamWaitEvent(stream, handle(), 0), "cudaStreamWaitEvent");
}

StatusOr<bool> CudaEvent::Done() const {
  return Ready(cudaEventQuery(handle()), "cudaEventQuery");
}

Status CudaEvent::Synchronize(std::string_view what, std::chrono::milliseconds deadline) const {
  return Poll([this] { return Done(); }, what, deadline);
}

StatusOr<double> CudaEvent::Seconds(const CudaEvent& begin, const CudaEvent& end) {
  float milliseconds = 0;
  TESSERA_RETURN_IF_ERROR(
      CheckCuda(cudaEventElapsedTime(&milliseconds, begin.handle(), end.handle()), "cudaEventElapsedTime"));
  return milliseconds / 1000.0;
}

Status WaitForSubmitted(const CudaDevice& device, CUstream_st* stream, std::string_view what,
                        std::chrono::milliseconds deadline) {
  TESSERA_ASSIGN_OR_RETURN(CudaEvent end, CudaEvent::Create(device));
  TESSERA_RETURN_IF_ERROR(end.Record(stream));
  return end.Synchronize(what, deadline);
}

}  // namespace tessera
