#include "runtime/device/cuda/check.h"

#include <cuda_runtime.h>

#include <atomic>
#include <mutex>

namespace tessera {
namespace {

struct Fault {
  std::atomic<bool> happened = false;
  std::mutex mutex;
  Status status;
};
// Never destroyed: buffers may be freed, and so checked, while the process exits.
Fault& FirstFault() {
  static auto* const fault = new Fault;
  return *fault;
}

// Errors after which the context is of no use, as documented with cudaError_t: "the process must be terminated and
// relaunched".
bool IsDeviceFault(cudaError_t code) {
  switch (code) {
    case cudaErrorECCUncorrectable:
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorAssert:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case cudaErrorTensorMemoryLeak:
    case cudaErrorExternalDevice:
      return true;
    default:
      return false;
  }
}

absl::StatusCode CodeFor(cudaError_t code) {
  switch (code) {
    case cudaErrorMemoryAllocation:
    case cudaErrorLaunchOutOfResources:
      return absl::StatusCode::kResourceExhausted;
    case cudaErrorInsufficientDriver:
    case cudaErrorNoDevice:
    case cudaErrorStubLibrary:
    case cudaErrorCallRequiresNewerDriver:
    case cudaErrorUnsupportedPtxVersion:
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorDevicesUnavailable:
    case cudaErrorSystemDriverMismatch:
    case cudaErrorSystemNotReady:
      return absl::StatusCode::kFailedPrecondition;
    case cudaErrorInvalidValue:
    case cudaErrorInvalidConfiguration:
    case cudaErrorInvalidPitchValue:
    case cudaErrorInvalidDevice:
    case cudaErrorInvalidResourceHandle:
    case cudaErrorInvalidDeviceFunction:
      return absl::StatusCode::kInvalidArgument;
    default:
      return absl::StatusCode::kUnknown;
  }
}

std::string Describe(cudaError_t code, std::string_view what) {
  return absl::StrCat(std::string(what), ": ", cudaGetErrorString(code), " (", cudaGetErrorName(code), ")");
}

// Explains what CUDA's own words leave open.
std::string Advice(cudaError_t code) {
  if (code != cudaErrorInsufficientDriver) return "";
  int driver = 0;
  if (cudaDriverGetVersion(&driver) == cudaSuccess && driver > 0) {
    return absl::StrFormat("; the driver is for CUDA %d.%d, this build needs %d.%d", driver / 1000, driver % 1000 / 10,
                           CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
  }
  return "; this machine has no NVIDIA driver";
}

}  // namespace

Status CheckCuda(int value, std::string_view what) {
  Fault& first = FirstFault();
  const auto code = static_cast<cudaError_t>(value);
  if (first.happened.load(std::memory_order_acquire)) {
    const std::lock_guard lock(first.mutex);
    return first.status;
  }
  if (code == cudaSuccess) return absl::OkStatus();
  (void)cudaGetLastError();  // reported here, not again by an unrelated CheckLaunch
  if (!IsDeviceFault(code)) return Status(CodeFor(code), absl::StrCat(Describe(code, what), Advice(code)));

  const std::lock_guard lock(first.mutex);
  if (first.status.ok()) {
    first.status = absl::InternalError(
        absl::StrCat("the GPU faulted; seen by ", Describe(code, what),
                     ". The cause is this call or work submitted before it; the CUDA context of this process is lost"));
    first.happened.store(true, std::memory_order_release);
  }
  return first.status;
}

Status CheckLaunch(std::string_view kernel) {
  return CheckCuda(cudaGetLastError(), kernel);
}

Status DeviceFault() {
  return CheckCuda(cudaSuccess, "");
}

void ForgetDeviceFault() {
  Fault& first = FirstFault();
  const std::lock_guard lock(first.mutex);
  first.status = absl::OkStatus();
  first.happened.store(false, std::memory_order_release);
}

}  // namespace tessera
