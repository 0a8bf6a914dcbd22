// The product of one warp's fragments: m16n8k8 and m16n8k16 of 16-bit elements with fp32 accumulators. mma.sync and
// wgmma both come down to it. Accumulation is a chain of fused multiply-adds in fp32 over k, upwards; hardware sums in
// an order and with a truncation that are not published, so results agree to rounding and not bit by bit.
#pragma once

#include <cstdint>

namespace tessera::vgpu {

// d = a * b + c. Pointers are to registers of 32 lanes: a[k/4], b[k/8], c[4], d[4]; d may be any of them. Fragments are
// laid out as the PTX ISA draws them: with g = lane / 4 and t = lane % 4, a[r] holds rows g + 8 (r & 1), columns
// 2t + {0, 1} + 8 (r >> 1); b[r] column g, rows 2t + {0, 1} + 8 r; c[r] row g + 8 (r >> 1), column 2t + (r & 1).
void Product(int k, bool bf16, const uint32_t* const* a, const uint32_t* const* b, const uint32_t* const* c,
             uint32_t* const* d);

// The same, eight lanes at a time; only where HasV3().
void FastProduct(int k, bool bf16, const uint32_t* const* a, const uint32_t* const* b, const uint32_t* const* c,
                 uint32_t* const* d);
void PlainProduct(int k, bool bf16, const uint32_t* const* a, const uint32_t* const* b, const uint32_t* const* c,
                  uint32_t* const* d);

}  // namespace tessera::vgpu
