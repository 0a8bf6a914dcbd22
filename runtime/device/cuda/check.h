// Results of CUDA calls as Status. Needs no <cuda_runtime.h>: a cudaError_t is an int here.
//
// Some errors are faults of the device: an illegal address, a failed launch. They destroy the CUDA context of the
// process; CUDA reports them from whatever call comes next, and from every later one. The first that is seen here is
// kept, with what was being done, and every later CheckCuda returns it.
#pragma once

#include <string_view>

#include "runtime/base/status.h"

namespace tessera {

// OK for cudaSuccess. `what` says in the error what was tried: "cudaEventRecord", "attention on GPU 0".
//
//   ResourceExhausted   out of device memory
//   FailedPrecondition  no driver, no GPU, a driver that is too old, a kernel built for other architectures
//   InvalidArgument     an argument that CUDA refuses
//   Internal            the device faulted, now or before
//   Unknown             anything else
Status CheckCuda(int code, std::string_view what);

// For the call that follows a kernel launch: CheckCuda(cudaGetLastError()), which also clears what the launch reported.
Status CheckLaunch(std::string_view kernel);

// The first fault of the device, OK while there was none.
Status DeviceFault();

// Forgets it, after cudaDeviceReset. For tests: libraries of the process may still hold what the reset destroyed.
void ForgetDeviceFault();

}  // namespace tessera
