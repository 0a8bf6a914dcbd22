// mma.sync for AVX2: what the plain code computes, eight lanes at a time.
#pragma once

#include <cstdint>

namespace tessera::vgpu {

// d = a * b + c of m16n8k(k), k 8 or 16, 16-bit elements, fp32 accumulators. Pointers are to registers of 32 lanes:
// a[k/4], b[k/8], c[4], d[4]; d may be c. Only where HasV3().
void FastMma(int k, bool bf16, const uint32_t* const* a, const uint32_t* const* b, const uint32_t* const* c,
             uint32_t* const* d);

}  // namespace tessera::vgpu
