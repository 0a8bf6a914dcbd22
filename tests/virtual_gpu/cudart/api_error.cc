// Error state, names and texts.
#include <iterator>

#include "tests/virtual_gpu/cudart/node.h"

using namespace tessera::vgpu;

namespace {

struct ErrorText {
  cudaError_t code;
  const char* name;
  const char* text;
};
#define VGPU_ERROR(code, text) \
  { code, #code, text }
// The texts are those of the CUDA runtime.
constexpr ErrorText kErrors[] = {
    VGPU_ERROR(cudaSuccess, "no error"),
    VGPU_ERROR(cudaErrorInvalidValue, "invalid argument"),
    VGPU_ERROR(cudaErrorMemoryAllocation, "out of memory"),
    VGPU_ERROR(cudaErrorInitializationError, "initialization error"),
    VGPU_ERROR(cudaErrorInvalidConfiguration, "invalid configuration argument"),
    VGPU_ERROR(cudaErrorInvalidPitchValue, "invalid pitch argument"),
    VGPU_ERROR(cudaErrorInvalidSymbol, "invalid device symbol"),
    VGPU_ERROR(cudaErrorInvalidMemcpyDirection, "invalid copy direction for memcpy"),
    VGPU_ERROR(cudaErrorInsufficientDriver, "CUDA driver version is insufficient for CUDA runtime version"),
    VGPU_ERROR(cudaErrorMissingConfiguration, "__global__ function call is not configured"),
    VGPU_ERROR(cudaErrorInvalidDeviceFunction, "invalid device function"),
    VGPU_ERROR(cudaErrorNoDevice, "no CUDA-capable device is detected"),
    VGPU_ERROR(cudaErrorInvalidDevice, "invalid device ordinal"),
    VGPU_ERROR(cudaErrorInvalidKernelImage, "device kernel image is invalid"),
    VGPU_ERROR(cudaErrorNoKernelImageForDevice, "no kernel image is available for execution on the device"),
    VGPU_ERROR(cudaErrorInvalidPtx, "a PTX JIT compilation failed"),
    VGPU_ERROR(cudaErrorInvalidResourceHandle, "invalid resource handle"),
    VGPU_ERROR(cudaErrorNotReady, "device not ready"),
    VGPU_ERROR(cudaErrorIllegalAddress, "an illegal memory access was encountered"),
    VGPU_ERROR(cudaErrorLaunchOutOfResources, "too many resources requested for launch"),
    VGPU_ERROR(cudaErrorLaunchTimeout, "the launch timed out and was terminated"),
    VGPU_ERROR(cudaErrorPeerAccessAlreadyEnabled, "peer access is already enabled"),
    VGPU_ERROR(cudaErrorIllegalInstruction, "an illegal instruction was encountered"),
    VGPU_ERROR(cudaErrorMisalignedAddress, "misaligned address"),
    VGPU_ERROR(cudaErrorLaunchFailure, "unspecified launch failure"),
    VGPU_ERROR(cudaErrorNotSupported, "operation not supported"),
    VGPU_ERROR(cudaErrorStreamCaptureUnsupported, "operation not permitted when stream is capturing"),
    VGPU_ERROR(cudaErrorStreamCaptureInvalidated, "operation failed due to a previous error during capture"),
    VGPU_ERROR(cudaErrorStreamCaptureMerge, "operation would result in a merge of separate capture sequences"),
    VGPU_ERROR(cudaErrorStreamCaptureUnmatched, "capture was not ended in the same stream as it began"),
    VGPU_ERROR(cudaErrorStreamCaptureUnjoined, "capturing stream has unjoined work"),
    VGPU_ERROR(cudaErrorStreamCaptureIsolation, "dependency created on uncaptured work in another stream"),
    VGPU_ERROR(cudaErrorStreamCaptureImplicit,
               "operation would make the legacy stream depend on a capturing blocking stream"),
    VGPU_ERROR(cudaErrorCapturedEvent, "operation not permitted on an event last recorded in a capturing stream"),
    VGPU_ERROR(cudaErrorUnknown, "unknown error"),
};
#undef VGPU_ERROR

const ErrorText* Find(cudaError_t code) {
  for (const ErrorText& error : kErrors) {
    if (error.code == code) return &error;
  }
  return nullptr;
}

cudaError_t Sticky() {
  Node& node = Node::Get();
  return node.usable() == cudaSuccess ? node.current().fault_code() : cudaSuccess;
}

}  // namespace

extern "C" {

const char* cudaGetErrorName(cudaError_t code) {
  const ErrorText* const error = Find(code);
  return error == nullptr ? "unrecognized error code" : error->name;
}

const char* cudaGetErrorString(cudaError_t code) {
  const ErrorText* const error = Find(code);
  return error == nullptr ? "unrecognized error code" : error->text;
}

cudaError_t cudaPeekAtLastError() {
  return Sticky() != cudaSuccess ? Sticky() : LastError();
}

cudaError_t cudaGetLastError() {
  const cudaError_t error = cudaPeekAtLastError();
  LastError() = cudaSuccess;
  return error;
}

// Not of CUDA: the whole text of the first fault of a device, empty when there is none.
const char* vgpuFaultText(int device) {
  thread_local std::string text;
  Node& node = Node::Get();
  text = node.usable() == cudaSuccess && device >= 0 && device < node.devices() ? node.device(device).fault_text() : "";
  return text.c_str();
}

}  // extern "C"
