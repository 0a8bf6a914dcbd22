// The one computation of this layer: sums in rank order, on the GPU.
#pragma once

#include <cstdint>

struct CUstream_st;

namespace tessera::internal {

// sum[i] = x_0[i] + x_1[i] + ... + x_{ranks-1}[i] from the left, i in [0, count), where x_own is `own_summands` and the
// others lie one after the other in `peers`. All device memory, fp32: own_summands [count], peers [ranks - 1, count],
// sum [count], which may be own_summands. Returns a cudaError_t.
int SumInRankOrder(const float* own_summands, const float* peers, float* sum, int64_t count, int ranks, int own,
                   CUstream_st* stream);

}  // namespace tessera::internal
