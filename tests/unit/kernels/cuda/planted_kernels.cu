// One instance of each of Hopper's kernels, for planted_test.cc to plant bugs into its PTX.
#include "kernels/cuda/sm90/attend_launch.cuh"
#include "kernels/cuda/sm90/backward_launch.cuh"
#include "kernels/cuda/sm90/decode_launch.cuh"

namespace tessera::cuda::sm90 {

template int LaunchAttend<BFloat16, 64, 64>(const AttendParams&, CUstream_st*);
template int LaunchBackward<BFloat16, 64, 64>(const BackwardParams&, CUstream_st*);
template int LaunchDecode<BFloat16, 192, 128, true>(const DecodeParams&, CUstream_st*);

}  // namespace tessera::cuda::sm90
