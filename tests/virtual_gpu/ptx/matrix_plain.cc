#include <cmath>

#include "tests/virtual_gpu/ptx/half_float.h"
#include "tests/virtual_gpu/ptx/matrix.h"

namespace tessera::vgpu {
namespace {

float Element(uint32_t packed, int half, bool bf16) {
  const uint32_t bits = packed >> (16 * half) & 0xffff;
  return bf16 ? FromBf16(bits) : FromF16(bits);
}

}  // namespace

void PlainProduct(int k, bool bf16, const uint32_t* const* a, const uint32_t* const* b, const uint32_t* const* c,
                  uint32_t* const* d) {
  float A[16][16], B[16][8], C[16][8];
  for (int l = 0; l < kLanes; ++l) {
    const int g = l / 4, t = l % 4;
    for (int h = 0; h < 2; ++h) {
      for (int r = 0; r < k / 4; ++r) A[g + 8 * (r & 1)][2 * t + h + 8 * (r >> 1)] = Element(a[r][l], h, bf16);
      for (int r = 0; r < k / 8; ++r) B[2 * t + h + 8 * r][g] = Element(b[r][l], h, bf16);
    }
    for (int r = 0; r < 4; ++r) C[g + 8 * (r >> 1)][2 * t + (r & 1)] = F32<false>::Read(c[r][l]);
  }
  for (int m = 0; m < 16; ++m) {
    for (int n = 0; n < 8; ++n) {
      for (int j = 0; j < k; ++j) C[m][n] = std::fma(A[m][j], B[j][n], C[m][n]);
    }
  }
  for (int l = 0; l < kLanes; ++l) {
    for (int r = 0; r < 4; ++r) d[r][l] = F32<false>::Write(C[l / 4 + 8 * (r >> 1)][2 * (l % 4) + (r & 1)]);
  }
}

void Product(int k, bool bf16, const uint32_t* const* a, const uint32_t* const* b, const uint32_t* const* c,
             uint32_t* const* d) {
#if defined(__x86_64__)
  if (HasV3()) return FastProduct(k, bf16, a, b, c, d);
#endif
  PlainProduct(k, bf16, a, b, c, d);
}

}  // namespace tessera::vgpu
