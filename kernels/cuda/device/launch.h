// What host wrappers call in compiled device code. Free of CUDA's headers and of Abseil's.
#pragma once

#include "kernels/cuda/device/attend_params.h"
#include "kernels/cuda/device/decode_params.h"

struct CUstream_st;

namespace tessera::cuda {

struct BFloat16;
struct Float16;

// The text of a cudaError_t.
const char* ErrorText(int code);

// Every launch function below is asynchronous on `stream` and returns a cudaError_t.
int LaunchDecodeMerge(const DecodeParams& params, CUstream_st* stream);
namespace sm80 {
template <typename Element, int kQk, int kV>
int LaunchAttend(const AttendParams& params, CUstream_st* stream);
// One kernel for the gradients of queries, and one or two for those of keys and values.
template <typename Element, int kQk, int kV>
int LaunchBackward(const BackwardParams& params, CUstream_st* stream);
// The splits, and after them their merge.
template <typename Element, int kQk, int kV, bool kLatent>
int LaunchDecode(const DecodeParams& params, CUstream_st* stream);
}  // namespace sm80
namespace sm90 {
template <typename Element, int kQk, int kV>
int LaunchAttend(const AttendParams& params, CUstream_st* stream);
template <typename Element, int kQk, int kV>
int LaunchBackward(const BackwardParams& params, CUstream_st* stream);
template <typename Element, int kQk, int kV, bool kLatent>
int LaunchDecode(const DecodeParams& params, CUstream_st* stream);
}  // namespace sm90

}  // namespace tessera::cuda
