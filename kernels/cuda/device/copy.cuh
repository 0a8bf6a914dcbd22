// Copies from global to shared memory in the background.
#pragma once

#include <cstdint>

namespace tessera::cuda {

// Copies 16 bytes to shared memory in the background, or writes zeros when `bytes` is 0.
__device__ __forceinline__ void CopyAsync(uint32_t shared, const void* global, uint32_t bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" : : "r"(shared), "l"(global), "r"(bytes) : "memory");
}
// The same for 4 bytes.
__device__ __forceinline__ void CopyWordAsync(uint32_t shared, const void* global, uint32_t bytes) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" : : "r"(shared), "l"(global), "r"(bytes) : "memory");
}
__device__ __forceinline__ void CommitCopies() {
  asm volatile("cp.async.commit_group;" : : : "memory");
}
__device__ __forceinline__ void WaitForAllCopies() {
  asm volatile("cp.async.wait_group 0;" : : : "memory");
}

// Writes 8 elements of which the first `count` are copied, the rest 0; for rows that are not aligned.
__device__ __forceinline__ void StoreElements(uint32_t shared, const uint16_t* source, int count) {
  uint32_t words[4] = {};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if (i < count) words[i / 2] |= uint32_t{source[i]} << (i % 2 * 16);
  }
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};"
               :
               : "r"(shared), "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3])
               : "memory");
}

// One thread's share of filling rows of kPieces 16-byte pieces, at tile + offset(row, piece). Rows from `rows` on and
// columns from `width` on become zero. In the background where `vector` says that pieces are aligned and
// whole; kUnroll copies at once, whose addresses have to fit the registers.
template <int kRows, int kPieces, int kThreads, int kUnroll, typename Offset>
__device__ __forceinline__ void LoadPieces(uint32_t tile, const uint16_t* global, int64_t row_stride, int rows,
                                           int width, bool vector, Offset offset) {
  const auto inside = [&](int i) { return i / kPieces < rows && i % kPieces * 8 < width; };
  const auto source = [&](int i) { return global + i / kPieces * row_stride + i % kPieces * 8; };
  if (vector) {
#pragma unroll kUnroll
    for (int i = static_cast<int>(threadIdx.x); i < kRows * kPieces; i += kThreads) {
      CopyAsync(tile + offset(i / kPieces, i % kPieces), inside(i) ? source(i) : global, inside(i) ? 16 : 0);
    }
  } else {
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < kRows * kPieces; i += kThreads) {
      StoreElements(tile + offset(i / kPieces, i % kPieces), source(i), inside(i) ? width - i % kPieces * 8 : 0);
    }
  }
}

}  // namespace tessera::cuda
